"""The fields of KubeRay's custom resources that may be written, as JSON schemas.

They are those of the Go types of ray.io/v1 (ray-operator/apis/ray/v1/raycluster_types.go and rayjob_types.go of
ray-project/kuberay, commits 3275ee0 and f6ef3f7), from which KubeRay generates its custom resource definitions, and
`authOptions` of KubeRay 1.6.2 as its API reference describes it. Pods are not described here: they are Kubernetes' own.
"""

from __future__ import annotations

from typing import Any

POD: dict[str, Any] = {"type": "object", "required": ["spec"], "properties": {"metadata": {}, "spec": {}}}
_WORDS = {"type": "object", "additionalProperties": {"type": "string"}}
_COUNT = {"type": "integer", "minimum": 0}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


_AUTOSCALER = _object(
    [],
    resources={"type": "object"},
    image={"type": "string"},
    imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
    securityContext={"type": "object"},
    idleTimeoutSeconds=_COUNT,
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    env={"type": "array"},
    envFrom={"type": "array"},
    volumeMounts={"type": "array"},
)
_HEAD = _object(
    ["rayStartParams", "template"],
    template=POD,
    headService={"type": "object"},
    enableIngress={"type": "boolean"},
    rayStartParams=_WORDS,
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]},
)
_WORKERS = _object(
    ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
    suspend={"type": "boolean"},
    groupName={"type": "string"},
    replicas=_COUNT,
    minReplicas=_COUNT,
    maxReplicas=_COUNT,
    idleTimeoutSeconds=_COUNT,
    rayStartParams=_WORDS,
    template=POD,
    scaleStrategy={"type": "object"},
    numOfHosts={"type": "integer", "minimum": 1},
)
_CLUSTER_SPEC = _object(
    ["headGroupSpec"],
    suspend={"type": "boolean"},
    managedBy={"type": "string"},
    authOptions=_object([], mode={"enum": ["disabled", "token"]}, secretName={"type": "string"}),
    autoscalerOptions=_AUTOSCALER,
    headServiceAnnotations=_WORDS,
    enableInTreeAutoscaling={"type": "boolean"},
    gcsFaultToleranceOptions={"type": "object"},
    headGroupSpec=_HEAD,
    rayVersion={"type": "string"},
    workerGroupSpecs={"type": "array", "items": _WORKERS},
)
_JOB_SPEC = _object(
    [],
    activeDeadlineSeconds=_COUNT,
    backoffLimit=_COUNT,
    rayClusterSpec=_CLUSTER_SPEC,
    submitterPodTemplate=POD,
    metadata=_WORDS,
    clusterSelector=_WORDS,
    submitterConfig=_object([], backoffLimit=_COUNT),
    managedBy={"type": "string"},
    deletionPolicy={"enum": ["DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone"]},
    entrypoint={"type": "string"},
    runtimeEnvYAML={"type": "string"},
    jobId={"type": "string"},
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
    entrypointResources={"type": "string"},
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    ttlSecondsAfterFinished=_COUNT,
    shutdownAfterJobFinishes={"type": "boolean"},
    suspend={"type": "boolean"},
)


def _resource(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = _object(
        ["name"], name={"type": "string"}, labels=_WORDS, annotations=_WORDS, namespace={"type": "string"}
    )
    return _object(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=metadata,
        spec=spec,
    )


SCHEMAS = {"RayCluster": _resource("RayCluster", _CLUSTER_SPEC), "RayJob": _resource("RayJob", _JOB_SPEC)}
