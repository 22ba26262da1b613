"""Are the parameters of a claim or a template readable as a VGPUConfig? Pure; `pending` writes what is wrong as events.

Said as soon as the object exists: a pod with a typing error in its claim would otherwise be scheduled and then wait in
ContainerCreating for ever.
"""

from api.claims import ClaimView, Object, OpaqueConfig
from api.errors import ConfigError, PermanentError
from api.vgpuconfig import parse_config


def check_configs(configs: tuple[OpaqueConfig, ...], driver: str, where: str) -> str:
    """Return what is wrong with the parameters for our driver, one line for each problem; empty if nothing is."""
    problems = []
    for config in configs:
        if config.driver == driver:
            try:
                parse_config(config.parameters, where)
            except ConfigError as error:
                problems.append(str(error))
    return "\n".join(problems)


def check_template(template: Object, driver: str) -> str:
    """Return what is wrong with the claims that a ResourceClaimTemplate would make; empty if nothing is."""
    metadata = template["metadata"]
    where = f"ResourceClaimTemplate {metadata['namespace']}/{metadata['name']}"
    claim = {
        "metadata": {key: metadata.get(key) for key in ("namespace", "name", "uid")},
        "spec": (template.get("spec") or {}).get("spec"),
    }
    try:
        view = ClaimView.from_object(claim)
    except PermanentError as error:
        return str(error).replace("ResourceClaim ", "ResourceClaimTemplate ", 1)
    return check_configs(view.configs, driver, where)
