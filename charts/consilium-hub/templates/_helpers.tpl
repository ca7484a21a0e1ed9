{{- define "consilium-hub.labels" -}}
app.kubernetes.io/name: consilium-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: consilium
{{- end }}
{{- define "consilium-hub.selector" -}}
app.kubernetes.io/name: consilium-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
