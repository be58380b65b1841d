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

{{- define "meari.secret" -}}
{{ .Values.keys.secret | default .Release.Name }}
{{- end }}

{{- define "meari.claim" -}}
{{ .Values.bundles.volume.claim | default (printf "%s-bundles" .Release.Name) }}
{{- end }}

{{- /* The value of a setting as text. Numbers of a file come as float64, which would be written as 1.6777216e+07. */}}
{{- define "meari.text" -}}
{{ if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{- /* The value of a setting, or what the service takes where it is not set: a list of values, name and that. */}}
{{- define "meari.setting" -}}
{{ include "meari.text" (get (index . 0) (index . 1)) | default (index . 2) }}
{{- end }}

{{- define "meari.mebibytes" -}}
{{ mulf (regexFind "^[0-9.]+" .) (get (dict "Mi" 1 "Gi" 1024 "M" 0.953674 "G" 953.674) (regexFind "[A-Za-z]+$" .)) }}
{{- end }}

{{- /* Refuse values that contradict each other; values.schema.json refuses those that are wrong alone. */}}
{{- define "meari.check" -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" .Release.Name) }}
{{- fail (printf "release name: got %s, expected a letter first and no dots, because a Service has this name" .Release.Name) }}
{{- end }}
{{- with .Values }}
{{- $names := keys .settings }}
{{- range list "MEARI_STATE_KEY" "MEARI_API_KEYS" "MEARI_ADMIN_KEYS" "MEARI_REDIS_URL" }}
{{- if has . $names }}
{{- fail (printf "settings: got %s, which is a secret, expected it in a Secret (keys.enabled, or env with valueFrom)" .) }}
{{- end }}
{{- end }}
{{- range .env }}{{- $names = append $names .name }}{{- end }}
{{- range list "MEARI_STATE_KEY" "MEARI_WORKERS" "MEARI_HOST" "MEARI_PORT" "MEARI_TLS_CERTIFICATE" "MEARI_TLS_KEY" "MEARI_KEYS_FILE" }}
{{- if has . $names }}
{{- fail (printf "settings, env: got %s, which the chart settles (resources.requests.cpu, keys.enabled; TLS ends at the Ingress)" .) }}
{{- end }}
{{- end }}
{{- $longest := include "meari.setting" (list .settings "MEARI_MAX_TIMEOUT_SECONDS" "300") | float64 }}
{{- $grace := include "meari.setting" (list .settings "MEARI_GRACEFUL_TIMEOUT_SECONDS" "310") | float64 }}
{{- if lt $grace $longest }}
{{- fail (printf "settings: got %v for MEARI_GRACEFUL_TIMEOUT_SECONDS, expected at least MEARI_MAX_TIMEOUT_SECONDS (%v), so that every open request may end" $grace $longest) }}
{{- end }}
{{- if le (float64 .terminationGracePeriodSeconds) (addf .preStopSeconds $grace) }}
{{- fail (printf "terminationGracePeriodSeconds: got %v, expected more than preStopSeconds (%v) and MEARI_GRACEFUL_TIMEOUT_SECONDS (%v) together" .terminationGracePeriodSeconds .preStopSeconds $grace) }}
{{- end }}
{{- if gt (int64 .autoscaling.minReplicas) (int64 .autoscaling.maxReplicas) }}
{{- fail (printf "autoscaling: got %v for minReplicas, expected at most maxReplicas (%v)" .autoscaling.minReplicas .autoscaling.maxReplicas) }}
{{- end }}
{{- with .resources }}
{{- if ne .requests.memory .limits.memory }}
{{- fail (printf "resources: got %s for requests.memory and %s for limits.memory, expected the same" .requests.memory .limits.memory) }}
{{- end }}
{{- $needed := mul 192 .requests.cpu }}
{{- if lt (include "meari.mebibytes" .limits.memory | float64) (float64 $needed) }}
{{- fail (printf "resources: got %s of memory, expected at least %dMi for %v workers" .limits.memory $needed .requests.cpu) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
