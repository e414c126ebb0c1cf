"""The keys that a SuperLink lets in: made equal to those in the server's folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    RegisterNodeRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.constant import NodeStatus
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from federation.deploy.bundles import SiteKey
from graphcl.errors import ConfigError, FederationError


@dataclass(frozen=True)
class Site:
    """Who may take part.

    Attributes:
        name: For people.
        partition: Which data it holds.
        key: Its public key, as a SuperLink stores it.
    """

    name: str
    partition: int
    key: bytes

    @classmethod
    def of(cls, known: SiteKey) -> Self:
        """Return the site of a public key in a bundle.

        Raises:
            ConfigError: If it is no key that Flower takes.
        """
        try:
            public = load_ssh_public_key(known.key.encode())
        except ValueError as error:
            raise ConfigError(f"the key of site '{known.name}' cannot be read: {error}") from None
        if not isinstance(public, EllipticCurvePublicKey):
            raise ConfigError(f"the key of site '{known.name}' is on no elliptic curve")
        return cls(known.name, known.partition, public_key_to_bytes(public))


@dataclass(frozen=True)
class Admitted:
    """What became of the keys.

    Attributes:
        nodes: Flower's number of every site's node, by the site's name.
        new: Names of the sites whose key was not registered before.
        gone: How many keys were taken out.
    """

    nodes: dict[str, int]
    new: list[str]
    gone: int


def let_in(sites: Sequence[Site], address: str, authority: Path) -> Admitted:
    """Register the keys of sites, and unregister all others, for good.

    Args:
        sites: Who may take part.
        address: Of the SuperLink, on this machine.
        authority: Certificate by which it is known.

    Raises:
        FederationError: If the SuperLink refuses.
    """
    client = ControlHttpClient.from_server_address(
        server_address=address,
        insecure=False,
        root_certificates=authority.read_bytes(),
        interceptors=[RuntimeVersionHttpInterceptor(component_name="graphcl")],
    )
    try:
        nodes = [
            node
            for node in client.ListNodes(ListNodesRequest()).nodes_info
            if node.status != NodeStatus.UNREGISTERED
        ]
        wanted = {site.key for site in sites}
        strangers = [node for node in nodes if node.public_key not in wanted]
        for node in strangers:
            client.UnregisterNode(UnregisterNodeRequest(node_id=node.node_id))
        known = {node.public_key: node.node_id for node in nodes}
        new = [site for site in sites if site.key not in known]
        for site in new:
            request = RegisterNodeRequest(public_key=site.key, name=site.name)
            known[site.key] = client.RegisterNode(request).node_id
    except httpx.HTTPStatusError as error:
        raise FederationError(
            f"the SuperLink refused to register the sites' keys: {error.response.text[:300]}; a "
            "key that was taken out once needs a new pair: `graphcl deploy rotate NAME`"
        ) from None
    finally:
        client.close()
    numbers = {site.name: known[site.key] for site in sites}
    return Admitted(numbers, [site.name for site in new], len(strangers))
