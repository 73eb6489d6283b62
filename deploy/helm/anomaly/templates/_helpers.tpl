{{- define "anomaly.name" -}}
{{- printf "%s" .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "anomaly.selector" -}}
app.kubernetes.io/name: anomaly
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "anomaly.labels" -}}
{{ include "anomaly.selector" . }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "anomaly.image" -}}
{{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}
{{- end -}}

{{/* Arguments of both roles: the connection to NATS. */}}
{{- define "anomaly.nats" -}}
- --nats={{ required "nats.url is the address of a NATS cluster" .Values.nats.url }}
- --replicas={{ .Values.nats.replicas }}
{{- with .Values.nats.credentialsKey }}
- --nats-creds=/etc/anomaly/nats/{{ . }}
{{- end }}
{{- with .Values.nats.nkeyKey }}
- --nats-nkey=/etc/anomaly/nats/{{ . }}
{{- end }}
{{- with .Values.nats.caKey }}
- --nats-ca=/etc/anomaly/nats/{{ . }}
{{- end }}
{{- with .Values.nats.certKey }}
- --nats-cert=/etc/anomaly/nats/{{ . }}
- --nats-key=/etc/anomaly/nats/{{ required "nats.certKey needs nats.keyKey" $.Values.nats.keyKey }}
{{- end }}
{{- if and (or .Values.nats.credentialsKey .Values.nats.nkeyKey .Values.nats.caKey .Values.nats.certKey) (not .Values.nats.secret) }}
{{- fail "keys of a NATS secret are set, and nats.secret is not" }}
{{- end }}
{{- end -}}

{{/* The pod of a role. Its argument has root, role (values of it), and the name. */}}
{{- define "anomaly.pod" -}}
{{- $root := .root -}}
{{- $role := .role -}}
metadata:
  labels:
    {{- include "anomaly.labels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ .name }}
  {{- with $root.Values.podAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "anomaly.name" $root }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with $root.Values.imagePullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    runAsGroup: 10001
    fsGroup: 10001
    seccompProfile: {type: RuntimeDefault}
  terminationGracePeriodSeconds: {{ $role.terminationGracePeriodSeconds }}
  topologySpreadConstraints:
    {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
    - maxSkew: 1
      topologyKey: {{ . }}
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "anomaly.selector" $root | nindent 10 }}
          app.kubernetes.io/component: {{ $.name }}
    {{- end }}
  containers:
    - name: {{ .name }}
      image: {{ include "anomaly.image" $root }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      args: {{- .args | nindent 8 }}
      env:
        - {name: PORT, value: "5029"}
        - {name: GOMAXPROCS, value: {{ $role.threads | quote }}}
        {{- with $root.Values.otlp.endpoint }}
        - {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ . | quote }}}
        - {name: OTEL_TRACES_SAMPLER, value: parentbased_traceidratio}
        - {name: OTEL_TRACES_SAMPLER_ARG, value: {{ $root.Values.otlp.ratio | quote }}}
        - name: OTEL_SERVICE_INSTANCE_ID
          valueFrom: {fieldRef: {fieldPath: metadata.name}}
        - name: OTEL_RESOURCE_ATTRIBUTES
          value: service.instance.id=$(OTEL_SERVICE_INSTANCE_ID),k8s.namespace.name={{ $root.Release.Namespace }}
        {{- end }}
      ports:
        - {name: http, containerPort: 5029}
      # A process that loads its models, or waits for NATS, is alive and not ready.
      startupProbe:
        httpGet: {path: /livez, port: http}
        periodSeconds: 2
        failureThreshold: 90
      livenessProbe:
        httpGet: {path: /livez, port: http}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      readinessProbe:
        httpGet: {path: /readyz, port: http}
        periodSeconds: 3
        timeoutSeconds: 3
        failureThreshold: 2
      # New connections stop before the process does.
      lifecycle:
        preStop: {sleep: {seconds: 5}}
      resources: {{- toYaml $role.resources | nindent 8 }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
      volumeMounts:
        - {name: temp, mountPath: /tmp}
        {{- if $root.Values.nats.secret }}
        - {name: nats, mountPath: /etc/anomaly/nats, readOnly: true}
        {{- end }}
        {{- if and $root.Values.tokenSecret (eq .name "serve") }}
        - {name: token, mountPath: /etc/anomaly/token, readOnly: true}
        {{- end }}
  volumes:
    - name: temp
      emptyDir: {sizeLimit: {{ $role.tempSize }}}
    {{- with $root.Values.nats.secret }}
    - name: nats
      secret: {secretName: {{ . }}, defaultMode: 288}
    {{- end }}
    {{- if and $root.Values.tokenSecret (eq .name "serve") }}
    - name: token
      secret: {secretName: {{ $root.Values.tokenSecret }}, defaultMode: 288}
    {{- end }}
  {{- with $root.Values.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $root.Values.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $root.Values.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
