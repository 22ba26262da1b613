"""The commands `dra-driver share list|show|set|suspend|resume`: their arguments and output. Part of the command line.

`sharing` reads the shares of this node, `changing` changes them.
"""

import argparse

from api.errors import ConfigError
from dra_driver.parsers import Commands, add_command, add_group, add_state_dir


def add(commands: Commands) -> None:
    """Add the commands to those of the program."""
    actions = add_group(commands, "share", "show and change the shares of this node")
    for name, function, text in (
        ("list", _list, "list all shares"),
        ("show", _show, "show one share"),
        ("set", _set, "change a share while it lives, within what its claim holds"),
        ("suspend", _suspend, "suspend a share: its launches wait"),
        ("resume", _resume, "resume a share that is suspended"),
    ):
        action = add_command(actions, name, function, text)
        add_state_dir(action)
        if name in {"list", "show"}:
            action.add_argument("-o", "--output", choices=("text", "json"), default="text")
        if name != "list":
            action.add_argument("name", help="name of the share (the claim's UID and a number), or the start of it")
        if name == "set":
            action.add_argument("--memory", metavar="Q", help='device memory, such as "2Gi"')
            action.add_argument("--cores", type=int, metavar="N", help="percent of the GPU's time, 1 to 100")
            action.add_argument(
                "--priority",
                type=int,
                metavar="N",
                help="among the shares of its GPU, -1000 to 1000: the highest first",
            )
            action.add_argument("--reset", action="store_true", help="undo earlier changes of this command first")


def _list(options: argparse.Namespace) -> int:
    from dra_driver import sharing

    shares = sharing.read_shares(options.state_dir)
    print(sharing.format_json(shares) if options.output == "json" else sharing.format_table(shares))
    return 0


def _show(options: argparse.Namespace) -> int:
    from dra_driver import sharing

    share = sharing.find_share(options.state_dir, options.name)
    print(sharing.format_json([share]) if options.output == "json" else sharing.format_share(share))
    return 0 if not share.problem else 1


def _set(options: argparse.Namespace) -> int:
    from dra_driver import changing

    wishes = {name: getattr(options, name) for name in ("memory", "cores", "priority")}
    given = {name: value for name, value in wishes.items() if value is not None}
    if not given and not options.reset:
        raise ConfigError("share set: found nothing to change, expected --memory, --cores, --priority or --reset")
    print(changing.change_share(options.state_dir, options.name, given, reset=options.reset))
    return 0


def _suspend(options: argparse.Namespace) -> int:
    from dra_driver import changing

    print(changing.change_share(options.state_dir, options.name, {"suspended": True}))
    return 0


def _resume(options: argparse.Namespace) -> int:
    from dra_driver import changing

    print(changing.change_share(options.state_dir, options.name, {"suspended": None}))
    return 0
