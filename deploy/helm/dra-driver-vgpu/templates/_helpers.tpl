{{/* Name of the chart, for labels. */}}
{{- define "vgpu.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Start of the names of all objects: the release's name, and the chart's if it is not in it already. */}}
{{- define "vgpu.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "vgpu.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "vgpu.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "vgpu.selectorLabels" -}}
app.kubernetes.io/name: {{ include "vgpu.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "vgpu.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "vgpu.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "vgpu.image" -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}

{{- define "vgpu.controllerAccount" -}}
{{ default (printf "%s-controller" (include "vgpu.fullname" .)) .Values.serviceAccounts.controllerName }}
{{- end -}}

{{- define "vgpu.nodeAgentAccount" -}}
{{ default (printf "%s-node-agent" (include "vgpu.fullname" .)) .Values.serviceAccounts.nodeAgentName }}
{{- end -}}

{{/* The controller's settings file. */}}
{{- define "vgpu.controllerConfig" -}}
offer_mode: {{ .Values.offerMode }}
offers: {{- toYaml .Values.offers | nindent 2 }}
device_classes: {{ .Values.deviceClasses.enabled }}
device_class_vendors: {{ .Values.deviceClasses.vendors | toJson }}
update_crd: {{ .Values.crds.update }}
device_class_owner: {{ include "vgpu.fullname" . }}-controller
{{- end -}}
