"""The bundle on disk, as training and serving both know it.

Input: a folder, or the parts of a bundle. Output: names, files and a checked manifest. Must not know: torch,
onnxruntime, HTTP.
"""
