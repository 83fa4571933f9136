"""The cluster folder's files say what Ray, the clouds and Kubernetes understand, and hold no secret."""

import copy
import datetime
import http.server
import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import click
import jsonschema
import pytest
import yaml
from botocore.validate import ParamValidator

from sweeps.cli import cli as sweep

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
from ray.autoscaler._private import resource_demand_scheduler, util
from ray.scripts.scripts import cli as ray

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "cluster"
LAUNCHED = ["aws.yaml", "gcp.yaml", "onprem.yaml"]
FILES = [*LAUNCHED, "kuberay.yaml"]
README = (FOLDER / "README.md").read_text()
DRAIN = FOLDER / "drain-on-notice.sh"
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
COMMANDS = ["initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"]
STARTS = ["head_start_ray_commands", "worker_start_ray_commands"]
PLACEHOLDER = re.compile(r"<[A-Z][A-Z0-9_]*>")


def text(name: str, *, alternatives: bool = False) -> str:
    """A file as it is, or with the lines that it offers as alternatives."""
    said = (FOLDER / name).read_text()
    return re.sub(r"^( *)#: ", r"\1", said, flags=re.MULTILINE) if alternatives else said


def load(name: str, *, alternatives: bool = False) -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(text(name, alternatives=alternatives))
    return read


def documents(*, alternatives: bool = False) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text("kuberay.yaml", alternatives=alternatives)))


def misspelt(tree: Any) -> Iterator[tuple[str, Any]]:
    """Each copy of a tree in which one key has a letter too many, with where that is."""
    if isinstance(tree, list):
        for place, value in enumerate(tree):
            for where, wrong in misspelt(value):
                yield f"{place}.{where}", [*tree[:place], wrong, *tree[place + 1 :]]
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield key, {(f"{key}x" if each == key else each): kept for each, kept in tree.items()}
            for where, wrong in misspelt(value):
                yield f"{key}.{where}", {**tree, key: wrong}


# What the files say


@pytest.mark.parametrize("name", FILES)
def test_what_is_to_be_filled_in_stands_at_the_top(name: str) -> None:
    lines = text(name).splitlines()
    heading = "\n".join(lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])
    listed = re.findall(r"^#   (<[A-Z0-9_]+>)", heading, re.MULTILINE)
    assert len(listed) == len({*listed})
    assert {*listed} == {*PLACEHOLDER.findall("\n".join(lines).removeprefix(heading))}


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_nothing_looks_like_a_secret(path: Path) -> None:
    said = path.read_text()
    assert not re.findall(r"AKIA|ASIA|BEGIN [A-Z ]*PRIVATE|ghp_|hf_[A-Za-z0-9]{8}|xox[bp]-", said)
    assert not re.findall(
        r"\b(?=\w*\d)(?=\w*[a-zA-Z])[A-Za-z0-9+/_]{32,}\b", re.sub(r"[\w./:-]*ami-id", "", said)
    )
    assert not re.findall(
        r"(?i)(?:password|secret_access_key|auth_token)[\"']?\s*[:=]\s*[\"']?[\w./+-]+$", said, re.M
    )
    for key, value in re.findall(r"(RAY_AUTH_TOKEN|PASSWORD|SECRET\w*)=(\S+)", said):
        assert value.startswith(("$", '"$')), key


@pytest.mark.parametrize("name", LAUNCHED)
def test_every_node_wants_a_token_and_has_it(name: str) -> None:
    config = load(name)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for each in STARTS:
        (start,) = [command for command in config[each] if re.search(r"\bray start\b", command)]
        assert "RAY_AUTH_MODE=token" in start.split("ray start")[0]
        # A training with no GPU sees none.
        assert "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=1" in start.split("ray start")[0]
    assert "--dashboard-host=127.0.0.1" in " ".join(config["head_start_ray_commands"])


def test_pods_want_a_token_too() -> None:
    for spec in clusters():
        assert spec["authOptions"] == {"mode": "token"}
        assert spec["rayVersion"] == PINS["ray"]  # without it the operator refuses the token
        assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
        for pod in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            (container,) = pod["template"]["spec"]["containers"]
            assert {"name": "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "value": "1"} in container["env"]
            for variable in container["env"]:
                if re.search("KEY|PASSWORD|TOKEN", variable["name"]):
                    assert "secretKeyRef" in variable["valueFrom"]


def test_versions_are_those_of_the_constraints() -> None:
    installs = {re.sub(r"\s+", " ", line) for name in LAUNCHED for line in load(name)["setup_commands"]}
    pythons = {found for line in installs for found in re.findall(r"--python (3\.\d+\.\d+)", line)}
    assert len(pythons) == len({line for line in installs if "astral.sh" in line}) == 1
    assert pythons.pop().startswith("3.11.")
    assert all("-c ~/pm25-sweeps/constraints.txt" in line for line in installs if " pip install " in line)
    assert f"FROM rayproject/ray:{PINS['ray']}-py311\n" in README


# Ray's cluster launcher


@pytest.mark.parametrize("alternatives", [False, True])
@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_takes_the_file(name: str, alternatives: bool) -> None:
    config = load(name, alternatives=alternatives)
    prepared = util.prepare_config(copy.deepcopy(config))
    util.validate_config(prepared)
    for wrong in ({"idle_timeout_minute": 5}, {"upscaling_speed": "fast"}):
        with pytest.raises(jsonschema.ValidationError):
            util.validate_config({**prepared, **wrong})
    # Ray's schema lets any key of a provider pass.
    schema = json.loads((Path(util.ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    assert {*config["provider"]} <= {*schema["properties"]["provider"]["properties"]}
    types = config.get("available_node_types", {})
    assert all({*each["resources"]} <= {"CPU", "GPU"} for each in types.values())


@pytest.mark.parametrize("name", LAUNCHED)
def test_a_launch_takes_the_token_and_what_is_installed_and_nothing_else(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = load(name)["file_mounts"]
    copied = {Path(local).parts[0] for local in mounts.values() if not local.startswith("~")}
    assert copied - {"cluster"} == {
        "pm25",
        "sweeps",
        "pyproject.toml",
        "constraints.txt",
        "README.md",
        "LICENSE",
    }
    assert all(remote == f"~/pm25-sweeps/{local}" for remote, local in mounts.items() if local[0] != "~")
    used = {line for each in [*COMMANDS, *STARTS] for line in load(name).get(each, [])}
    scripts = {found for line in used for found in re.findall(r"~/pm25-sweeps/cluster/\S+", line)}
    assert scripts <= {*mounts}
    # `ray up` reads every file before it starts a machine: without a token it goes no further.
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(util, "_hash_cache", {})
    with pytest.raises(FileNotFoundError, match="auth_token"):
        util.hash_runtime_conf(mounts, [], [])
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").touch()
    assert util.hash_runtime_conf(mounts, [], [])


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_nothing_costs_while_nothing_runs_but_the_head(name: str) -> None:
    config = load(name)
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0}  # no training lands on it
    workers = {each: said for each, said in config["available_node_types"].items() if said is not head}
    assert all(said["min_workers"] == 0 and said["resources"]["GPU"] for said in workers.values())
    assert 0 < config["idle_timeout_minutes"] <= 15
    assert config["provider"]["cache_stopped_nodes"] is False
    market = {"aws.yaml": "InstanceMarketOptions", "gcp.yaml": "scheduling"}[name]
    for each, said in config["available_node_types"].items():
        spot = re.search("(?i)spot", str(said["node_config"].get(market))) is not None
        assert spot == ("spot" in each)


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_spot_is_taken_first_and_on_demand_where_there_is_none(name: str) -> None:
    """By the scheduler that `ray up` gives to the head."""
    config = util.prepare_config(load(name))
    types = config["available_node_types"]
    for each in types.values():
        each["max_workers"] = each["max_workers"] or 4  # as where the larger ones may be had
    del types["head"]

    def chosen(demand: list[dict[str, float]], **without: Any) -> dict[str, int]:
        offered = {each: said for each, said in types.items() if each not in without.get("without", ())}
        return resource_demand_scheduler.get_nodes_for(
            offered,
            {},
            "head",
            16,
            demand,
            lambda node, resources, node_type: resource_demand_scheduler._resource_based_utilization_scorer(
                node, resources, node_availability_summary=None
            ),
        )[0]

    assert chosen([{"CPU": 1, "GPU": 0.25}] * 9) == {"l4_spot": 3}
    assert chosen([{"CPU": 1, "GPU": 0.25}] * 3, without=["l4_spot"]) == {"l4_on_demand": 1}
    assert chosen([{"CPU": 1}]) == {"l4_spot": 1}


# What the clouds take


RUN_INSTANCES = (
    botocore.session.Session().get_service_model("ec2").operation_model("RunInstances").input_shape
)


def ec2_refuses(node_config: dict[str, Any]) -> str:
    asked = {**node_config, "MinCount": 1, "MaxCount": 1}
    report: str = ParamValidator().validate(asked, RUN_INSTANCES).generate_report()
    return report


def gce(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": fields}


def one_of(*values: Any) -> dict[str, Any]:
    return {"enum": [*values]}


STRING, BOOLEAN, WHOLE = {"type": "string"}, {"type": "boolean"}, {"type": "integer", "minimum": 0}
INSTANCE = {
    **gce(
        machineType={"type": "string", "pattern": r"^[a-z]\w*-[a-z]+-\d+g?$"},
        disks={
            "type": "array",
            "minItems": 1,
            "items": {
                **gce(
                    boot=BOOLEAN,
                    autoDelete=one_of(True),  # or it goes on costing
                    type=one_of("PERSISTENT"),
                    initializeParams={
                        **gce(
                            diskSizeGb={"type": "integer", "minimum": 50},
                            diskType={"type": "string", "pattern": r"^zones/<ZONE>/diskTypes/[a-z-]+$"},
                            sourceImage={
                                "type": "string",
                                "pattern": r"^projects/[a-z-]+/global/images/family/[a-z0-9-]+$",
                            },
                        ),
                        "required": ["diskSizeGb", "sourceImage"],
                    },
                ),
                "required": ["boot", "autoDelete", "initializeParams"],
            },
        },
        scheduling={
            **gce(
                provisioningModel=one_of("SPOT", "STANDARD"),
                instanceTerminationAction=one_of("DELETE", "STOP"),
                onHostMaintenance=one_of("TERMINATE"),  # a machine with GPUs cannot be moved
                automaticRestart=BOOLEAN,
            ),
            "required": ["onHostMaintenance"],
            "if": {"required": ["instanceTerminationAction"]},
            "then": {
                "properties": {"provisioningModel": one_of("SPOT"), "automaticRestart": one_of(False)},
                "required": ["provisioningModel", "automaticRestart"],
            },
            "else": {"required": ["automaticRestart"]},
        },
        guestAccelerators={
            "type": "array",
            "items": {
                **gce(acceleratorType=STRING, acceleratorCount=WHOLE),
                "required": ["acceleratorType", "acceleratorCount"],
            },
        },
        serviceAccounts={
            "type": "array",
            "items": {
                **gce(email=STRING, scopes={"type": "array", "items": STRING}),
                "required": ["email", "scopes"],
            },
        },
    ),
    "required": ["machineType", "disks"],
}
"""Those fields of Compute Engine's v1 Instance that gcp.yaml uses."""


def gce_refuses(node_config: dict[str, Any]) -> str:
    return "; ".join(
        each.message for each in jsonschema.Draft202012Validator(INSTANCE).iter_errors(node_config)
    )


@pytest.mark.parametrize(("name", "refuses"), [("aws.yaml", ec2_refuses), ("gcp.yaml", gce_refuses)])
@pytest.mark.parametrize("alternatives", [False, True])
def test_the_cloud_takes_the_machines(name: str, refuses: Any, alternatives: bool) -> None:
    types = load(name, alternatives=alternatives)["available_node_types"]
    for each in types.values():
        assert refuses(each["node_config"]) == ""
        for where, wrong in misspelt(each["node_config"]):
            assert refuses(wrong), where


def test_the_clouds_refuse_a_wrong_value() -> None:
    spot = load("aws.yaml")["available_node_types"]["l4_spot"]["node_config"]
    assert "VolumeSize" in ec2_refuses({**spot, "BlockDeviceMappings": [{"Ebs": {"VolumeSize": "large"}}]})
    spot = load("gcp.yaml")["available_node_types"]["l4_spot"]["node_config"]
    assert gce_refuses({**spot, "scheduling": [spot["scheduling"]]})
    assert gce_refuses({**spot, "scheduling": {**spot["scheduling"], "automaticRestart": True}})


def test_machines_have_what_is_said_of_them() -> None:
    """GPUs and CPUs of the types, which Ray's scheduler goes by where it starts them."""
    known = {
        "g6.2xlarge": (8, 1),
        "p5.48xlarge": (192, 8),
        "p4d.24xlarge": (96, 8),
        "g2-standard-8": (8, 1),
        "a3-highgpu-8g": (208, 8),
        "a2-highgpu-1g": (12, 1),
    }
    for name, field in (("aws.yaml", "InstanceType"), ("gcp.yaml", "machineType")):
        for each, said in load(name)["available_node_types"].items():
            if each != "head":
                cpu, gpu = known[said["node_config"][field]]
                assert said["resources"] == {"CPU": cpu, "GPU": gpu}


LAUNCH = """
import json
import sys

import boto3
import yaml
from moto import mock_aws
from moto.ec2.models.instance_types import INSTANCE_TYPES
from ray.autoscaler._private import util
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

config = util.prepare_config(yaml.safe_load(sys.stdin))
kinds = config["available_node_types"]
named = {kind["node_config"]["InstanceType"] for kind in kinds.values()}
for other in INSTANCE_TYPES.keys() - named:  # Ray reads them all, which takes ten seconds
    del INSTANCE_TYPES[other]
with mock_aws():
    for profile in {kind["node_config"]["IamInstanceProfile"]["Name"] for kind in kinds.values()}:
        boto3.client("iam").create_instance_profile(InstanceProfileName=profile)
    unsaid = {name: {**kind, "resources": {}} for name, kind in kinds.items()}
    known = AWSNodeProvider.fillout_available_node_types_resources({**config, "available_node_types": unsaid})
    config = AWSNodeProvider.bootstrap_config(config)
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    told = {}
    for name, kind in config["available_node_types"].items():
        (machine,) = provider.create_node(kind["node_config"], {"ray-node-name": name}, 1).values()
        has = known["available_node_types"][name]["resources"]
        profile = machine.iam_instance_profile["Arn"].split("/")[-1]
        told[name] = [machine.instance_lifecycle, profile, {each: has.get(each) for each in ("CPU", "GPU")}]
    groups = boto3.client("ec2").describe_security_groups()["SecurityGroups"]
    (rules,) = [group["IpPermissions"] for group in groups if config["cluster_name"] in group["GroupName"]]
with open(sys.argv[1], "w") as file:
    json.dump([told, [rule["FromPort"] for rule in rules if rule["IpRanges"]]], file)
"""


@pytest.mark.slow
def test_rays_launcher_starts_the_machines_at_a_toy_of_aws(tmp_path: Path) -> None:
    filled = {"<REGION>": "us-west-2", "<ZONES>": "us-west-2a,us-west-2b"}
    said = PLACEHOLDER.sub(lambda found: filled.get(found[0], found[0].strip("<>")), text("aws.yaml"))
    variables = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **dict.fromkeys(variables, "us-west-2")}
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH, tmp_path / "told.json"],
        input=said,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told, open_ports = json.loads((tmp_path / "told.json").read_text())
    types = load("aws.yaml")["available_node_types"]
    assert {*told} == {*types}
    assert told.pop("head")[:2] == [None, "HEAD_PROFILE"]
    for name, (lifecycle, profile, resources) in told.items():
        assert lifecycle == ("spot" if "spot" in name else None)
        assert profile == "WORKER_PROFILE"
        assert resources == types[name]["resources"]  # as EC2 knows the instance type
    assert open_ports == [22]


# Kubernetes


def thing(*required: str, **fields: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": [*required], "properties": fields}


def many(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": item}


NAME = {"type": "string", "pattern": r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"}
COUNT = {"type": "integer", "minimum": 0}
QUANTITY = {"type": ["string", "integer"], "pattern": r"^\d+(\.\d+)?(m|[KMGT]i?)?$"}
STRINGS = {"type": "object", "additionalProperties": STRING}
RESOURCES = thing(
    "requests",
    requests=(
        amounts := {
            **thing(
                cpu=QUANTITY, memory=QUANTITY, **{"ephemeral-storage": QUANTITY, "nvidia.com/gpu": COUNT}
            ),
            "minProperties": 1,
        }
    ),
    limits=amounts,
)
CONTAINER = thing(
    "name",
    "image",
    "resources",
    name=NAME,
    image={"const": "<IMAGE>"},
    ports=many(thing("name", "containerPort", name=NAME, containerPort=COUNT)),
    env=many(
        {
            **thing(
                "name",
                name={"type": "string", "pattern": "^[A-Z][A-Z0-9_]*$"},
                value=STRING,
                valueFrom=thing(
                    "secretKeyRef",
                    secretKeyRef=thing("name", "key", name=NAME, key=STRING, optional=BOOLEAN),
                ),
            ),
            "oneOf": [{"required": ["value"]}, {"required": ["valueFrom"]}],
        }
    ),
    resources=RESOURCES,
    lifecycle=thing("preStop", preStop=thing("exec", exec=thing("command", command=many(STRING)))),
    volumeMounts=many(thing("name", "mountPath", name=NAME, mountPath={"type": "string", "pattern": "^/"})),
)
POD = thing(
    "spec",
    spec=thing(
        "containers",
        "restartPolicy",
        containers=many(CONTAINER),
        restartPolicy=one_of("Never"),  # the autoscaler of version 2 refuses others
        terminationGracePeriodSeconds=COUNT,
        serviceAccountName=STRING,
        nodeSelector=STRINGS,
        tolerations=many(
            thing(
                "key",
                "operator",
                key=STRING,
                operator=one_of("Exists", "Equal"),
                value=STRING,
                effect=one_of("NoSchedule", "NoExecute", "PreferNoSchedule"),
            )
        ),
        volumes=many(
            {
                **thing(
                    "name",
                    name=NAME,
                    emptyDir=thing("sizeLimit", medium=one_of("Memory", ""), sizeLimit=QUANTITY),
                    persistentVolumeClaim=thing("claimName", claimName=NAME),
                ),
                "minProperties": 2,
                "maxProperties": 2,
            }
        ),
    ),
)
CLUSTER = thing(
    "rayVersion",
    "authOptions",
    "headGroupSpec",
    "workerGroupSpecs",
    "enableInTreeAutoscaling",
    "autoscalerOptions",
    rayVersion=STRING,
    authOptions=thing("mode", mode=one_of("token", "disabled")),
    enableInTreeAutoscaling=BOOLEAN,
    autoscalerOptions=thing(
        "idleTimeoutSeconds",
        version=one_of("v1", "v2"),
        idleTimeoutSeconds=COUNT,
        upscalingMode=one_of("Default", "Aggressive", "Conservative"),
        resources=RESOURCES,
    ),
    headGroupSpec=thing(
        "rayStartParams",
        "template",
        serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer"),
        rayStartParams=STRINGS,
        template=POD,
    ),
    workerGroupSpecs=many(
        thing(
            "groupName",
            "minReplicas",
            "maxReplicas",
            "rayStartParams",
            "template",
            groupName=NAME,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=STRINGS,
            template=POD,
        )
    ),
)
JOB = thing(
    "entrypoint",
    "rayClusterSpec",
    entrypoint=STRING,
    backoffLimit=COUNT,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"),
    shutdownAfterJobFinishes=BOOLEAN,
    ttlSecondsAfterFinished=COUNT,
    rayClusterSpec=CLUSTER,
)
CLAIM = thing(
    "accessModes",
    "resources",
    accessModes=many(one_of("ReadWriteMany")),
    storageClassName=STRING,
    resources=thing("requests", requests=thing("storage", storage=QUANTITY)),
)
SPECS = {
    "RayCluster": ("ray.io/v1", CLUSTER),
    "RayJob": ("ray.io/v1", JOB),
    "PersistentVolumeClaim": ("v1", CLAIM),
}
"""KubeRay's v1 types and the parts of a pod, as far as kuberay.yaml uses them."""


def kubernetes_refuses(manifest: dict[str, Any]) -> str:
    version, spec = SPECS[manifest["kind"]]
    whole = thing(
        "apiVersion",
        "kind",
        "metadata",
        "spec",
        apiVersion={"const": version},
        kind=STRING,
        metadata=thing("name", "labels", name=NAME, labels=thing("sweep", sweep=NAME)),
        spec=spec,
    )
    return "; ".join(each.message for each in jsonschema.Draft202012Validator(whole).iter_errors(manifest))


def clusters(*, alternatives: bool = False) -> list[dict[str, Any]]:
    specs = {each["kind"]: each["spec"] for each in documents(alternatives=alternatives)}
    return [specs["RayCluster"], specs["RayJob"]["rayClusterSpec"]]


FREE = re.compile(r"\b(labels|nodeSelector|rayStartParams)\.")
"""Where Kubernetes takes any key."""


@pytest.mark.parametrize("alternatives", [False, True])
def test_kubernetes_takes_the_manifests(alternatives: bool) -> None:
    found = documents(alternatives=alternatives)
    assert len(found) == 2 + alternatives
    for manifest in found:
        assert kubernetes_refuses(manifest) == ""
        for where, wrong in misspelt(manifest):
            if where != "kind" and not FREE.search(where):
                assert kubernetes_refuses(wrong), where


def test_the_job_runs_on_the_cluster_that_is_offered() -> None:
    alone, of_the_job = clusters()
    assert alone == of_the_job
    alone, of_the_job = clusters(alternatives=True)
    assert alone == of_the_job


def test_a_pod_has_what_it_asks_for_and_gpus_start_from_none() -> None:
    for spec in clusters(alternatives=True):
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"  # no training lands on it
        (workers,) = spec["workerGroupSpecs"]
        assert (workers["replicas"], workers["minReplicas"]) == (0, 0)
        assert spec["autoscalerOptions"]["idleTimeoutSeconds"] <= 900
        for group in (spec["headGroupSpec"], workers):
            pod = group["template"]["spec"]
            (container,) = pod["containers"]
            assert {each["name"] for each in container["volumeMounts"]} == {
                each["name"] for each in pod["volumes"]
            }
            (shm,) = [each for each in container["volumeMounts"] if each["mountPath"] == "/dev/shm"]
            (volume,) = [each for each in pod["volumes"] if each["name"] == shm["name"]]
            assert volume["emptyDir"]["medium"] == "Memory"
            limit = container["resources"]["limits"]
            assert gigabytes(volume["emptyDir"]["sizeLimit"]) < gigabytes(limit["memory"])
            assert "ephemeral-storage" in limit
        asked = container["resources"]
        assert asked["requests"]["nvidia.com/gpu"] == asked["limits"]["nvidia.com/gpu"] >= 1
        hook = workers["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert int(hook[-1].split()[-1]) < pod["terminationGracePeriodSeconds"]
        assert f"cluster/{DRAIN.name}" in hook[-1]


def gigabytes(quantity: str) -> int:
    return int(quantity.removesuffix("Gi"))


def test_a_lost_head_is_started_again() -> None:
    (job,) = [each["spec"] for each in documents() if each["kind"] == "RayJob"]
    assert job["backoffLimit"] >= 1
    assert job["shutdownAfterJobFinishes"] is True
    assert {"--address auto", "--wait-for-nodes", "--require-tracking"} <= {
        *re.findall(r"--address auto|--[a-z-]+", job["entrypoint"])
    }


# Commands


def shell(name: str) -> list[str]:
    """Every shell command of a file, those that it offers as alternatives too."""
    if name in LAUNCHED:
        config = load(name, alternatives=True)
        return [command for each in [*COMMANDS, *STARTS] for command in config.get(each, [])]
    hooks = [
        each["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
        for spec in clusters()
        for each in spec["workerGroupSpecs"]
    ]
    return [*hooks, *(each["spec"]["entrypoint"] for each in documents() if each["kind"] == "RayJob")]


def blocks(language: str) -> str:
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL))


def commands() -> list[str]:
    """The calls of `ray` and `sweep` wherever they stand."""
    scripts = [each for name in FILES for each in shell(name)]
    scripts += [re.sub(r"\\\n", " ", said) for said in (blocks("bash"), DRAIN.read_text())]
    call = re.compile(r"(?:^|[;&|(]|do|then|until|\s)\s*(?:~/env/bin/)?((?:ray|sweep) [a-z-]+[^;&|\n()#]*)")
    found = {
        re.sub(r"\s+", " ", each).strip()
        for script in scripts
        for line in script.splitlines()
        if not line.lstrip().startswith("#")
        for each in call.findall(re.sub(r"'[^']*'", "TEXT", line))
    }
    inline = re.findall(r"(?<!`)`((?:ray|sweep) [^`]* -[^`]*)`(?!`)", README)
    return sorted(found | {line for line in inline if "..." not in line})


def parsed(line: str) -> click.Context:
    words = shlex.split(re.sub(r"[<>].*", "", PLACEHOLDER.sub("quick", line)))
    command: click.Command = {"ray": ray, "sweep": sweep}[words.pop(0)]
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    return command.make_context(line, [re.sub(r"^\$\w+$", "1", word) for word in words])


@pytest.mark.parametrize("line", commands())
def test_a_command_parses(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert parsed(line)


def test_there_are_commands_to_parse_and_wrong_ones_are_seen() -> None:
    names = {" ".join(line.split()[:2]) for line in commands()}
    assert names >= {"ray start", "ray stop", "ray drain-node", "ray up", "ray down", "ray dashboard"}
    assert names >= {"sweep run", "sweep submit", "sweep status"}
    for line in ("ray start --heads", "ray drain-node --reason SPOT", "sweep run quick --adress auto"):
        with pytest.raises(click.UsageError):
            parsed(line)


@pytest.mark.parametrize("name", [*FILES, DRAIN.name])
def test_shell_is_sound(name: str, tmp_path: Path) -> None:
    script = FOLDER / name
    if name in FILES:
        script = tmp_path / "commands.sh"
        script.write_text(
            "#!/bin/bash\n" + "\n".join(PLACEHOLDER.sub("x", each) for each in shell(name)) + "\n"
        )
    checked = subprocess.run(  # 2016: what is written into ~/.bashrc is meant for later
        [Path(sys.executable).parent / "shellcheck", "--exclude=SC2016", script],
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout


# The notice of a spot machine


NODE = "5f" * 28


class Metadata(http.server.BaseHTTPRequestHandler):
    """A cloud's metadata service, which has a notice from the second question on."""

    asked: list[str]
    ends: str

    def do_PUT(self) -> None:
        assert self.path == "/latest/api/token"
        self.answer(200 if self.headers["X-aws-ec2-metadata-token-ttl-seconds"] else 400, "session")

    def do_GET(self) -> None:
        self.asked.append(self.path)
        noticed = len(self.asked) > 1
        if self.path == "/latest/meta-data/spot/instance-action":
            assert self.headers["X-aws-ec2-metadata-token"] == "session"
            said = json.dumps({"action": "terminate", "time": self.ends})
            self.answer(200 if noticed else 404, said)
        elif self.path == "/computeMetadata/v1/instance/preempted":
            assert self.headers["Metadata-Flavor"] == "Google"
            self.answer(200, "TRUE" if noticed else "FALSE")
        else:
            self.answer(404, "")

    def answer(self, status: int, said: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said.encode())

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""


def machine(tmp_path: Path, nodes: list[str]) -> dict[str, str]:
    """The environment of a machine on which such Ray nodes run, with a toy for the program `ray`."""
    for number, node in enumerate(nodes, 100):
        process = tmp_path / "proc" / str(number)
        process.mkdir(parents=True)
        process.joinpath("cmdline").write_text(f"raylet\0--node_id={node}\0--dashboard=--node-id={node} x\0")
    told = tmp_path / "env" / "bin" / "ray"
    told.parent.mkdir(parents=True)
    told.write_text('#!/bin/bash\necho "$RAY_AUTH_MODE $*" >> "$HOME/told"; rm -r "$PROCESSES"/*\n')
    told.chmod(0o755)
    return {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PROCESSES": str(tmp_path / "proc")}


def drained(tmp_path: Path) -> tuple[str, dict[str, str]]:
    """How often the toy was told to drain: once, and with what."""
    mode, *words = (tmp_path / "told").read_text().rstrip("\n").split(" ", 1)
    line = (
        words[0].replace(" --reason-message ", " --reason-message '").replace(" --deadline", "' --deadline")
    )
    return mode, parsed(f"ray {line}").params


@pytest.mark.parametrize(("cloud", "seconds"), [("aws", range(100, 121)), ("gcp", range(30, 31))])
def test_a_notice_drains_the_node(tmp_path: Path, cloud: str, seconds: range) -> None:
    ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=120)
    service = type("Service", (Metadata,), {"asked": [], "ends": ends.strftime("%Y-%m-%dT%H:%M:%SZ")})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        metadata = {"METADATA_URL": f"http://127.0.0.1:{server.server_port}", "POLL_S": "0.1"}
        environment = machine(tmp_path, [NODE]) | metadata
        done = subprocess.run(
            [DRAIN, cloud, "10.0.0.1:6379"], env=environment, capture_output=True, text=True, timeout=30
        )
        server.shutdown()
    assert done.returncode == 0, done.stderr
    assert len(service.asked) == 2
    mode, told = drained(tmp_path)
    assert mode == "token"
    assert (told["address"], told["node_id"]) == ("10.0.0.1:6379", NODE)
    assert told["reason"] == "DRAIN_NODE_REASON_PREEMPTION"
    assert told["deadline_remaining_seconds"] in seconds


def test_a_pod_drains_before_it_ends_and_waits_no_longer_than_it_must(tmp_path: Path) -> None:
    environment = machine(tmp_path, [NODE])
    subprocess.run([DRAIN, "now", "10.0.0.1:6379", "20"], env=environment, check=True, timeout=5)
    _, told = drained(tmp_path)
    assert (told["node_id"], told["deadline_remaining_seconds"]) == (NODE, 20)


@pytest.mark.parametrize("nodes", [[], [NODE, "a0" * 28]])
def test_no_other_node_is_drained_by_mistake(tmp_path: Path, nodes: list[str]) -> None:
    done = subprocess.run(
        [DRAIN, "now", "10.0.0.1:6379"], env=machine(tmp_path, nodes), capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "no Ray node runs here, or more than one" in done.stderr
    assert not (tmp_path / "told").exists()


# The README


def test_the_readme_names_every_file() -> None:
    table = README.split("\n## ")[0]
    assert {*re.findall(r"`([\w.-]+\.(?:yaml|sh|sbatch))`", table)} >= {
        path.name for path in FOLDER.iterdir() if path.name != "README.md"
    }


def test_the_readme_says_of_each_how_to_use_it_and_what_it_costs() -> None:
    for heading in ("AWS", "Google Cloud", "Machines of your own", "Kubernetes", "Slurm"):
        assert f"\n## {heading}\n" in README
    for question in ("What it costs when idle", "What survives what", "Tokens", "Storage and tracking"):
        assert f"\n## {question}\n" in README
    assert {*PLACEHOLDER.findall(README)} <= {
        each for name in FILES for each in PLACEHOLDER.findall(text(name))
    }
