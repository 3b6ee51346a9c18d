{{/* The name of every object. At most 50 characters, so that what is added to it fits into 63; a label of DNS that begins
with a letter, as a Service needs it. What is cut keeps a digest, so that two long names stay two. */}}
{{- define "tailguard.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else -}}
{{- $name := .Release.Name | replace "." "-" -}}
{{- if not (contains "tailguard" $name) -}}{{- $name = printf "%s-tailguard" $name -}}{{- end -}}
{{- if regexMatch "^[0-9]" $name -}}{{- $name = printf "tailguard-%s" (trimSuffix "-tailguard" $name) -}}{{- end -}}
{{- if gt (len $name) 50 -}}
{{- $name = printf "%s-%s" (trunc 41 $name | trimSuffix "-") (sha256sum .Release.Name | trunc 8) -}}
{{- end -}}
{{- $name -}}
{{- end -}}
{{- end -}}

{{/* What selects the pods of this release. */}}
{{- define "tailguard.selector" -}}
app.kubernetes.io/name: tailguard
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{/* The labels of every object. Those that select win over what is given. */}}
{{- define "tailguard.labels" -}}
{{- $own := dict "app.kubernetes.io/version" .Chart.AppVersion "app.kubernetes.io/managed-by" .Release.Service
  "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_") -}}
{{- mergeOverwrite $own (.Values.labels | default dict) (include "tailguard.selector" . | fromYaml) | toYaml -}}
{{- end -}}

{{/* metadata of an object: (list . suffix annotations). */}}
{{- define "tailguard.metadata" -}}
{{- $root := index . 0 -}}
name: {{ include "tailguard.fullname" $root }}{{ index . 1 }}
namespace: {{ $root.Release.Namespace }}
labels: {{- include "tailguard.labels" $root | nindent 2 }}
{{- with mergeOverwrite dict ($root.Values.annotations | default dict) (index . 2 | default dict) }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "tailguard.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "tailguard.fullname" .) "" .Values.serviceAccount.create) -}}
{{- end -}}

{{- define "tailguard.keysSecret" -}}
{{- .Values.keys.existingSecret | default (printf "%s-keys" (include "tailguard.fullname" .)) -}}
{{- end -}}

{{- define "tailguard.image" -}}
{{- $tag := .Values.image.tag | default (printf "%s-%s" .Chart.AppVersion (ternary "gpu" "cpu" .Values.gpu.enabled)) -}}
{{- with .Values.image.digest -}}{{- $.Values.image.repository }}@{{ . -}}
{{- else -}}{{- .Values.image.repository }}:{{ $tag -}}{{- end -}}
{{- end -}}
