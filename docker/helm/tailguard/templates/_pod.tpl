{{/* The container, of a Deployment or of KServe's ServingRuntime: (list . name portName healthPrefix). */}}
{{- define "tailguard.container" -}}
{{- $root := index . 0 -}}
{{- with $root -}}
{{- $port := include "tailguard.given" (list . "TAILGUARD_PORT") | default "8000" | int -}}
{{- $health := index $ 3 -}}
{{- $asked := ternary "http" $port (eq (index $ 2) "http") -}}
name: {{ index $ 1 }}
image: {{ include "tailguard.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
ports:
  - {name: {{ index $ 2 }}, containerPort: {{ $port }}, protocol: TCP}
env:
  {{- include "tailguard.env" . | trim | nindent 2 }}
{{- with .Values.envFrom }}
envFrom: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext: {{- toYaml .Values.securityContext | nindent 2 }}
resources: {{- toYaml (ternary .Values.gpu.resources .Values.resources .Values.gpu.enabled) | nindent 2 }}
startupProbe:
  {{- include "tailguard.ask" (list (printf "%s/ready" $health) $asked .Values.probes.startup) | nindent 2 }}
readinessProbe:
  {{- include "tailguard.ask" (list (printf "%s/ready" $health) $asked .Values.probes.readiness) | nindent 2 }}
livenessProbe:
  {{- include "tailguard.ask" (list (printf "%s/live" $health) $asked .Values.probes.liveness) | nindent 2 }}
volumeMounts:
  - {name: tmp, mountPath: /tmp}
  {{- if or .Values.keys.existingSecret .Values.keys.toml }}
  - {name: keys, mountPath: /run/secrets/tailguard, readOnly: true}
  {{- end }}
  {{- if .Values.persistence.enabled }}
  - {name: ledger, mountPath: /var/lib/tailguard}
  {{- end }}
  {{- if .Values.store.existingClaim }}
  - {name: images, mountPath: /var/lib/tailguard-images}
  {{- end }}
  {{- if or .Values.bundles.existingClaim .Values.bundles.image }}
  - {name: bundles, mountPath: /models, readOnly: true}
  {{- end }}
  {{- if include "tailguard.fetches" . }}
  - {name: cache, mountPath: /var/cache/tailguard}
  {{- end }}
  {{- with .Values.volumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}
{{- end -}}

{{/* A probe: (list path port times). The service answers probes under any host name. */}}
{{- define "tailguard.ask" -}}
httpGet:
  path: {{ index . 0 }}
  port: {{ index . 1 }}
{{ toYaml (index . 2) }}
{{- end -}}

{{- define "tailguard.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: {{ .Values.tmpSizeLimit }}}
{{- if or .Values.keys.existingSecret .Values.keys.toml }}
- name: keys
  secret:
    secretName: {{ include "tailguard.keysSecret" . }}
    items: [{key: keys.toml, path: keys.toml}]
{{- end }}
{{- if .Values.persistence.enabled }}
- name: ledger
  persistentVolumeClaim:
    claimName: {{ .Values.persistence.existingClaim | default (printf "%s-ledger" (include "tailguard.fullname" .)) }}
{{- end }}
{{- with .Values.store.existingClaim }}
- name: images
  persistentVolumeClaim: {claimName: {{ . }}}
{{- end }}
{{- with .Values.bundles.existingClaim }}
- name: bundles
  persistentVolumeClaim: {claimName: {{ . }}, readOnly: true}
{{- end }}
{{- with .Values.bundles.image }}
- name: bundles
  image: {reference: {{ . | quote }}, pullPolicy: {{ $.Values.image.pullPolicy }}}
{{- end }}
{{- if include "tailguard.fetches" . }}
- name: cache
  emptyDir: {sizeLimit: {{ .Values.bundles.cacheSizeLimit }}}
{{- end }}
{{- with .Values.volumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Of the pod, beside its containers and volumes. Kubernetes' links would set TAILGUARD_PORT and others, which the service
would take for settings. */}}
{{- define "tailguard.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ include "tailguard.terminationSeconds" . }}
securityContext: {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with include "tailguard.serviceAccount" . }}
serviceAccountName: {{ . }}
{{- end }}
{{- range $name := list "imagePullSecrets" "nodeSelector" "tolerations" "affinity" "priorityClassName" "runtimeClassName" }}
{{- with get $.Values $name }}
{{ $name }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
topologySpreadConstraints:
  {{- with .Values.topologySpreadConstraints }}
  {{- toYaml . | nindent 2 }}
  {{- else }}
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "tailguard.selector" . | nindent 8 }}
  {{- end }}
{{- end -}}

{{/* metadata of pods. A changed Secret that the chart made rolls the pods; an existing one does not. */}}
{{- define "tailguard.podMetadata" -}}
{{- $annotations := mergeOverwrite dict (.Values.podAnnotations | default dict) -}}
{{- if or .Values.keys.toml .Values.ledger.url -}}
{{- $_ := set $annotations "checksum/secrets" (printf "%s%s" .Values.keys.toml .Values.ledger.url | sha256sum) -}}
{{- end -}}
labels:
  {{- mergeOverwrite (dict "app.kubernetes.io/version" .Chart.AppVersion) (.Values.labels | default dict) (.Values.podLabels | default dict)
    (include "tailguard.selector" . | fromYaml) | toYaml | nindent 2 }}
{{- with $annotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
