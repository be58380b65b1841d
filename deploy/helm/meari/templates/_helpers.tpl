{{- define "meari.labels" -}}
app.kubernetes.io/name: meari
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "meari.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag }}{{ end }}
{{- end -}}
{{- end }}

{{- define "meari.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: ["ALL"]
{{- end }}
