"""`vitscale data ...`: the commands about the order of samples and the speed of reading them."""

from vitscale.arguments import Commands


def add_order_commands(commands: Commands) -> None:
    """To come."""
