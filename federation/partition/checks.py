"""Checks that the ways of dividing a graph share."""

from graphcl.errors import PartitionError


def check_clients(num_nodes: int, num_clients: int, min_nodes: int = 1) -> None:
    """Check that each client can have its share of the nodes.

    Args:
        num_nodes: Nodes to divide.
        num_clients: Clients to divide them over, at least 1.
        min_nodes: Nodes each client needs, at least 1.

    Raises:
        PartitionError: There are too few nodes, or a number is below 1.
    """
    if num_clients < 1 or min_nodes < 1:
        raise PartitionError(
            f"num_clients is {num_clients} and min_nodes {min_nodes}: both must be at least 1"
        )
    if num_clients * min_nodes > num_nodes:
        raise PartitionError(
            f"{num_nodes} nodes are too few for num_clients = {num_clients} with min_nodes = "
            f"{min_nodes} each: lower num_clients or min_nodes"
        )
