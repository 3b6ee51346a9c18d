{{/* A value as the service reads it. Numbers of a values file are floats, and 10485760 must not become 1.048576e+07. */}}
{{- define "tailguard.text" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) -}}{{- int64 . -}}{{- else -}}{{- toString . -}}{{- end -}}
{{- end -}}

{{/* A setting that was given: (list . NAME). Its text; "(elsewhere)" where it comes from a Secret; empty for none. */}}
{{- define "tailguard.given" -}}
{{- $root := index . 0 -}}{{- $name := index . 1 -}}
{{- if hasKey ($root.Values.settings | default dict) $name -}}
{{- include "tailguard.text" (get $root.Values.settings $name) -}}
{{- else -}}
{{- range $root.Values.env -}}
{{- if eq .name $name -}}{{- if hasKey . "value" -}}{{- .value -}}{{- else -}}(elsewhere){{- end -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* "true" or nothing, for a setting that is true or false. */}}
{{- define "tailguard.isTrue" -}}
{{- if has (include "tailguard.given" . | lower) (list "true" "1" "yes" "on" "t" "y") -}}true{{- end -}}
{{- end -}}

{{- define "tailguard.isAddress" -}}
{{- if or (contains "://" .) (hasPrefix "models:/" .) -}}true{{- end -}}
{{- end -}}

{{/* "true" where a bundle is fetched from an address, or may be: what a Secret holds is not known here. */}}
{{- define "tailguard.fetches" -}}
{{- $bundle := include "tailguard.given" (list . "TAILGUARD_BUNDLE") -}}
{{- $shadow := include "tailguard.given" (list . "TAILGUARD_SHADOW_BUNDLE") -}}
{{- if or (include "tailguard.isAddress" $bundle) (include "tailguard.isAddress" $shadow) (has "(elsewhere)" (list $bundle $shadow)) -}}true{{- end -}}
{{- end -}}

{{/* The port of a URL; empty where it names none. */}}
{{- define "tailguard.port" -}}
{{- regexReplaceAll "^[a-z]+://([^/?#]*@)?" . "" | regexFind "^[^/?#]*" | regexFind ":[0-9]+$" | trimPrefix ":" -}}
{{- end -}}

{{/* Ports for addresses: those given, and those of web addresses in the settings and variables (AWS_ENDPOINT_URL, say). */}}
{{- define "tailguard.addressPorts" -}}
{{- $ports := .Values.networkPolicy.addressPorts -}}
{{- $texts := list (include "tailguard.given" (list . "TAILGUARD_BUNDLE")) (include "tailguard.given" (list . "TAILGUARD_SHADOW_BUNDLE")) -}}
{{- range .Values.env -}}{{- if not (hasPrefix "TAILGUARD_" .name) -}}{{- $texts = append $texts (get . "value" | toString) -}}{{- end -}}{{- end -}}
{{- range $texts -}}
{{- if regexMatch "^https?://" . -}}
{{- $ports = append $ports (include "tailguard.port" . | default (ternary "443" "80" (hasPrefix "https:" .)) | int) -}}
{{- end -}}
{{- end -}}
{{- range uniq $ports }}
- {protocol: TCP, port: {{ int . }}}
{{- end -}}
{{- end -}}

{{/* Which ledger: postgresql, elsewhere (a variable from a Secret), off, memory or file. */}}
{{- define "tailguard.ledger" -}}
{{- $given := include "tailguard.given" (list . "TAILGUARD_LEDGER") -}}
{{- if or .Values.ledger.existingSecret .Values.ledger.url (contains "://" $given) -}}postgresql
{{- else if eq $given "(elsewhere)" -}}elsewhere
{{- else if eq $given "off" -}}off
{{- else if or (eq $given ":memory:") (and (not $given) (not .Values.persistence.enabled)) -}}memory
{{- else -}}file
{{- end -}}
{{- end -}}

{{/* Whether images are kept: "true" or nothing. */}}
{{- define "tailguard.keeps" -}}
{{- $keep := include "tailguard.given" (list . "TAILGUARD_KEEP") | default "none" -}}
{{- $sample := include "tailguard.given" (list . "TAILGUARD_KEEP_SAMPLE") | default "0" -}}
{{- if or (ne $keep "none") (gt (float64 $sample) 0.0) -}}true{{- end -}}
{{- end -}}

{{/* Where images are kept: the setting, else the shared claim. */}}
{{- define "tailguard.store" -}}
{{- $given := include "tailguard.given" (list . "TAILGUARD_STORE") -}}
{{- $given | default (ternary "/var/lib/tailguard-images" "" (not (empty .Values.store.existingClaim))) -}}
{{- end -}}

{{- define "tailguard.mostReplicas" -}}
{{- if .Values.kserve.enabled -}}{{- int .Values.kserve.maxReplicas -}}
{{- else if .Values.autoscaling.enabled -}}{{- int .Values.autoscaling.max -}}
{{- else -}}{{- int .Values.replicas -}}
{{- end -}}
{{- end -}}

{{/* After TERM: the grace, the drain and a margin, in whole seconds. The grace stands in for a preStop hook: the service is
not ready and still serves while endpoints are taken out. */}}
{{- define "tailguard.terminationSeconds" -}}
{{- $grace := include "tailguard.given" (list . "TAILGUARD_DRAIN_GRACE_S") | default "2" | float64 -}}
{{- $drain := include "tailguard.given" (list . "TAILGUARD_DRAIN_S") | default "20" | float64 -}}
{{- add (addf $grace $drain | ceil | int64) (int64 .Values.terminationMarginSeconds) -}}
{{- end -}}

{{/* The variables that the chart sets by itself, by name; what is given in settings wins. */}}
{{- define "tailguard.own" -}}
{{- $own := dict -}}
{{- if or .Values.keys.existingSecret .Values.keys.toml -}}
{{- $_ := set $own "TAILGUARD_KEYS_FILE" "/run/secrets/tailguard/keys.toml" -}}
{{- end -}}
{{- if .Values.gpu.enabled -}}{{- $_ := set $own "TAILGUARD_PROVIDER" "cuda" -}}{{- end -}}
{{- if .Values.kserve.enabled -}}{{- $_ := set $own "TAILGUARD_BUNDLE" "/mnt/models" -}}{{- end -}}
{{- if .Values.store.existingClaim -}}{{- $_ := set $own "TAILGUARD_STORE" "/var/lib/tailguard-images" -}}{{- end -}}
{{- if and .Values.persistence.enabled (eq (include "tailguard.ledger" .) "file") -}}
{{- $_ := set $own "TAILGUARD_LEDGER" "/var/lib/tailguard/ledger.sqlite3" -}}
{{- end -}}
{{- if include "tailguard.fetches" . -}}{{- $_ := set $own "TAILGUARD_BUNDLE_CACHE" "/var/cache/tailguard" -}}{{- end -}}
{{- range .Values.env -}}{{- $_ := unset $own .name -}}{{- end -}}
{{- toYaml $own -}}
{{- end -}}

{{/* env of the container. */}}
{{- define "tailguard.env" -}}
{{- $all := include "tailguard.own" . | fromYaml -}}
{{- range $name, $value := .Values.settings -}}
{{- with include "tailguard.text" $value -}}{{- $_ := set $all $name . -}}{{- end -}}
{{- end -}}
{{- range $name, $value := $all }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- if or .Values.ledger.existingSecret .Values.ledger.url }}
- name: TAILGUARD_LEDGER
  valueFrom:
    secretKeyRef:
      name: {{ .Values.ledger.existingSecret | default (printf "%s-ledger" (include "tailguard.fullname" .)) }}
      key: {{ .Values.ledger.key }}
{{- end }}
{{- with .Values.env }}
{{ toYaml . }}
{{- end }}
{{- end -}}
