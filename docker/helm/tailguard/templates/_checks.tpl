{{/* What does not go together, a sentence a line. The first part is what would lose data or open the service; the second
what the service would refuse at its start, said before anything is installed. */}}
{{- define "tailguard.wrong" -}}
{{- include "tailguard.wrong.access" . }}
{{ include "tailguard.wrong.ledger" . }}
{{ include "tailguard.wrong.bundles" . }}
{{ include "tailguard.wrong.cluster" . }}
{{- end -}}

{{- define "tailguard.wrong.access" -}}
{{- $given := dict -}}
{{- range (list "API_KEY" "API_KEYS" "ADMIN_KEYS" "KEYS_FILE" "HOST" "ALLOWED_HOSTS") -}}
{{- $_ := set $given . (include "tailguard.given" (list $ (printf "TAILGUARD_%s" .))) -}}
{{- end -}}
{{- $file := or .Values.keys.existingSecret .Values.keys.toml -}}
{{- $anonymous := include "tailguard.isTrue" (list . "TAILGUARD_ALLOW_ANONYMOUS") -}}
{{- if not (or $file $anonymous $given.API_KEY $given.API_KEYS $given.KEYS_FILE) }}
The service can be reached from other pods and has no keys: set keys.existingSecret to a Secret with keys.toml (kubectl create secret generic tailguard-keys --from-file=keys.toml --from-file=metrics_key), or settings.TAILGUARD_ALLOW_ANONYMOUS=true to serve everybody.
{{- end }}
{{- range (list "API_KEY" "API_KEYS" "ADMIN_KEYS") }}
{{- $text := get $given . }}
{{- if and $text (ne $text "(elsewhere)") }}
TAILGUARD_{{ . }} is a secret and would be readable in the Deployment: give keys by keys.existingSecret, or it by env with valueFrom.
{{- end }}
{{- end }}
{{- if and .Values.keys.existingSecret .Values.keys.toml }}
keys.existingSecret and keys.toml are both set: choose one.
{{- end }}
{{- if and $file $given.KEYS_FILE }}
TAILGUARD_KEYS_FILE={{ $given.KEYS_FILE }} is set, and so is keys.{{ ternary "existingSecret" "toml" (not (empty .Values.keys.existingSecret)) }}: choose one.
{{- end }}
{{- if regexMatch "^(127\\.|localhost$|::1$|\\[::1\\]$)" $given.HOST }}
TAILGUARD_HOST={{ $given.HOST }} cannot be reached by probes and the Service: leave it out.
{{- end }}
{{- if .Values.serviceMonitor.enabled }}
{{- if and .Values.keys.toml (not .Values.keys.metricsKey) }}
serviceMonitor.enabled needs keys.metricsKey, one of the keys of keys.toml.
{{- end }}
{{- if not (or $file $anonymous) }}
serviceMonitor.enabled needs keys.existingSecret with metrics_key, or keys.toml and keys.metricsKey.
{{- end }}
{{- if and $given.ALLOWED_HOSTS (not (has "*" (splitList "," (nospace $given.ALLOWED_HOSTS)))) }}
TAILGUARD_ALLOWED_HOSTS={{ $given.ALLOWED_HOSTS }} refuses Prometheus, which asks each pod by its address: leave it out and let the Ingress choose by host, or set serviceMonitor.enabled=false.
{{- end }}
{{- end }}
{{- end -}}

{{- define "tailguard.wrong.ledger" -}}
{{- $ledger := include "tailguard.ledger" . -}}
{{- $given := include "tailguard.given" (list . "TAILGUARD_LEDGER") -}}
{{- $store := include "tailguard.store" . -}}
{{- $keeps := include "tailguard.keeps" . -}}
{{- $most := int (include "tailguard.mostReplicas" .) -}}
{{- if regexMatch "^postgres(ql)?://" $given }}
TAILGUARD_LEDGER is a URL with a password and would be readable in the Deployment: put it into a Secret and name that in ledger.existingSecret, or set ledger.url.
{{- end }}
{{- if and .Values.ledger.existingSecret .Values.ledger.url }}
ledger.existingSecret and ledger.url are both set: choose one.
{{- end }}
{{- if and (or .Values.ledger.existingSecret .Values.ledger.url) $given }}
TAILGUARD_LEDGER is set beside ledger.existingSecret or ledger.url: choose one.
{{- end }}
{{- if and .Values.ledger.url (not (regexMatch "^postgres(ql)?://" .Values.ledger.url)) }}
ledger.url must begin with postgresql://.
{{- end }}
{{- if and (gt $most 1) (has $ledger (list "memory" "file")) }}
{{ $most }} replicas cannot share a ledger in {{ ternary "memory" "a file" (eq $ledger "memory") }}: feedback would miss its request. Set ledger.existingSecret to a Secret with a postgresql:// URL, or settings.TAILGUARD_LEDGER="off", or one replica.
{{- end }}
{{- if and .Values.persistence.enabled (gt $most 1) }}
persistence.enabled is for one replica, there may be {{ $most }}: they share ledger.existingSecret and an object store or store.existingClaim.
{{- end }}
{{- if and .Values.persistence.enabled .Values.strategy (ne (get .Values.strategy "type") "Recreate") }}
persistence.enabled lets one pod write at a time: leave strategy empty, or give {type: Recreate}.
{{- end }}
{{- if and .Values.persistence.enabled .Values.kserve.enabled }}
persistence.enabled has no place under kserve.enabled: set ledger.existingSecret.
{{- end }}
{{- if and (eq $ledger "file") $given (not (include "tailguard.isMounted" (list . $given))) }}
TAILGUARD_LEDGER={{ $given }} lies on a read-only file system: set persistence.enabled=true, which mounts /var/lib/tailguard, or mount a volume there.
{{- end }}
{{- if and (gt $most 1) $keeps $store (regexMatch "^(memory://|file:|/|[^:]*$)" $store) (not (and .Values.store.existingClaim (hasPrefix "/var/lib/tailguard-images" $store))) }}
{{ $most }} replicas keep images in TAILGUARD_STORE={{ $store }}, which they do not share: name an object store such as s3://bucket/folder, or set store.existingClaim to a claim of the mode ReadWriteMany.
{{- end }}
{{- if regexMatch "://[^/?]*@" $store }}
TAILGUARD_STORE holds a user or password and would be readable in the Deployment: give credentials by envFrom or a service account.
{{- end }}
{{- if and $keeps (has $ledger (list "postgresql")) (not $store) }}
TAILGUARD_KEEP and TAILGUARD_KEEP_SAMPLE need a place for images beside a database: set settings.TAILGUARD_STORE, such as s3://bucket/folder, or store.existingClaim.
{{- end }}
{{- if and $keeps (eq $ledger "off") }}
TAILGUARD_KEEP and TAILGUARD_KEEP_SAMPLE need a ledger, and TAILGUARD_LEDGER is off.
{{- end }}
{{- if and $keeps (eq $ledger "memory") $store }}
TAILGUARD_STORE={{ $store }} outlives a ledger in memory, which then knows none of its images: set ledger.existingSecret or persistence.enabled.
{{- end }}
{{- if and $keeps (hasPrefix "/" $store) (not (include "tailguard.isMounted" (list . $store))) }}
TAILGUARD_STORE={{ $store }} lies on a read-only file system: set persistence.enabled=true or store.existingClaim, or mount a volume there.
{{- end }}
{{- end -}}

{{- define "tailguard.wrong.bundles" -}}
{{- $named := dict -}}
{{- range (list "TAILGUARD_BUNDLE" "TAILGUARD_SHADOW_BUNDLE") -}}
{{- $_ := set $named . (include "tailguard.given" (list $ .)) -}}
{{- end -}}
{{- $mounted := or .Values.bundles.existingClaim .Values.bundles.image -}}
{{- $here := or (regexMatch "^/models(/|$)" $named.TAILGUARD_BUNDLE) (regexMatch "^/models(/|$)" $named.TAILGUARD_SHADOW_BUNDLE) -}}
{{- if and .Values.bundles.existingClaim .Values.bundles.image }}
bundles.existingClaim and bundles.image are both set: choose one.
{{- end }}
{{- if and $mounted (not $here) }}
bundles are mounted at /models and none of them is used: set settings.TAILGUARD_BUNDLE to /models/NAME/VERSION.
{{- end }}
{{- if and $here (not $mounted) }}
A bundle under /models is named and nothing is mounted there: set bundles.existingClaim or bundles.image.
{{- end }}
{{- range $name, $source := $named }}
{{- $shown := regexReplaceAll "://[^/?#]*@" $source "://" }}
{{- if and (regexMatch "^https?://" $source) (not (contains "#sha256=" $source)) }}
{{ $name }}={{ $shown }} comes from a web server and is not pinned: add #sha256=… with the digest of its manifest.json.
{{- end }}
{{- if and (contains "#sha256=" $source) (not (regexMatch "#sha256=[0-9a-fA-F]{64}$" $source)) }}
{{ $name }}={{ $shown }} is pinned to what is no sha256: give its 64 digits, as tailguard push prints them.
{{- end }}
{{- if regexMatch "://[^/?]*@" (regexReplaceAll "^hf://[^#]*" $source "") }}
{{ $name }} holds a user or password and would be readable in the Deployment: give credentials by envFrom or a service account.
{{- end }}
{{- end }}
{{- end -}}

{{- define "tailguard.wrong.cluster" -}}
{{- $provider := include "tailguard.given" (list . "TAILGUARD_PROVIDER") -}}
{{- $grace := include "tailguard.given" (list . "TAILGUARD_DRAIN_GRACE_S") | default "2" | float64 -}}
{{- $notice := mulf .Values.probes.readiness.periodSeconds .Values.probes.readiness.failureThreshold -}}
{{- if and (eq $provider "cuda") (not .Values.gpu.enabled) }}
TAILGUARD_PROVIDER=cuda needs the image and the resources of a GPU: set gpu.enabled=true.
{{- end }}
{{- if and (eq $provider "cpu") .Values.gpu.enabled }}
gpu.enabled reserves a GPU that TAILGUARD_PROVIDER=cpu does not use: leave one of them out.
{{- end }}
{{- if gt $notice $grace }}
A pod that ends serves for TAILGUARD_DRAIN_GRACE_S={{ $grace }} s, and probes.readiness notices only after {{ $notice }} s that it is not ready: requests would be lost at every upgrade. Raise the one or lower the other.
{{- end }}
{{- if .Values.autoscaling.enabled }}
{{- if gt (int .Values.autoscaling.min) (int .Values.autoscaling.max) }}
autoscaling.min={{ .Values.autoscaling.min }} is more than autoscaling.max={{ .Values.autoscaling.max }}.
{{- end }}
{{- if not (or .Values.serviceMonitor.enabled .Values.autoscaling.query) }}
autoscaling.enabled counts requests that Prometheus scrapes: set serviceMonitor.enabled=true, or autoscaling.query to a query of your own.
{{- end }}
{{- end }}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) }}
ingress.enabled needs a host: set ingress.hosts.
{{- end }}
{{- if .Values.kserve.enabled }}
{{- if not .Values.kserve.storageUri }}
kserve.enabled needs a bundle: set kserve.storageUri, such as s3://models/shop/3.
{{- end }}
{{- if include "tailguard.given" (list . "TAILGUARD_BUNDLE") }}
KServe puts the bundle of kserve.storageUri into /mnt/models: leave out settings.TAILGUARD_BUNDLE.
{{- end }}
{{- range (list "autoscaling" "ingress" "serviceMonitor") }}
{{- if (get $.Values .).enabled }}
{{ . }}.enabled belongs to the Deployment, and kserve.enabled takes its place: leave one of them out.
{{- end }}
{{- end }}
{{- end }}
{{- range .Values.env }}
{{- if hasKey ($.Values.settings | default dict) .name }}
{{ .name }} is in settings and in env: choose one.
{{- end }}
{{- end }}
{{- end -}}

{{/* Whether something that can be written is mounted at a path: (list . path). "true" or nothing. */}}
{{- define "tailguard.isMounted" -}}
{{- $root := index . 0 -}}{{- $path := index . 1 -}}
{{- $places := list "/tmp" -}}
{{- if $root.Values.persistence.enabled -}}{{- $places = append $places "/var/lib/tailguard" -}}{{- end -}}
{{- if $root.Values.store.existingClaim -}}{{- $places = append $places "/var/lib/tailguard-images" -}}{{- end -}}
{{- range $root.Values.volumeMounts -}}{{- $places = append $places (trimSuffix "/" .mountPath) -}}{{- end -}}
{{- range $places -}}
{{- if or (eq $path .) (hasPrefix (printf "%s/" .) $path) -}}true{{- end -}}
{{- end -}}
{{- end -}}
