{{- define "consilium-site.labels" -}}
app.kubernetes.io/name: consilium-agent
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: consilium
{{- end }}
{{- define "consilium-site.selector" -}}
app.kubernetes.io/name: consilium-agent
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{/* The port that the agent dials on its way to the hub: the proxy's (80 if it names none), else the gateway's (443). */}}
{{- define "consilium-site.hubPort" -}}
{{- $proxy := .Values.gateway.httpsProxy -}}
{{- $port := regexFind ":[0-9]+/?$" (default .Values.gateway.url $proxy) | trimAll ":/" -}}
{{- default (ternary "80" "443" (not (empty $proxy))) $port -}}
{{- end }}
{{/* Half of the agent's volume, in bytes: the other half is for updates on their way and the ledger. */}}
{{- define "consilium-site.cacheBytes" -}}
{{- $size := .Values.state.size -}}
{{- $unit := get (dict "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776) (regexFind "[A-Z]i$" $size) -}}
{{- div (mul (regexFind "^[0-9]+" $size | int64) $unit) 2 -}}
{{- end }}
