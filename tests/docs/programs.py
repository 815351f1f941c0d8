"""Stands in for the programs that the pages' commands call: programs.py NAME ARGUMENT ...

`python` is run by tests/docs/server.py, which has everything imported. What installs, or needs
another machine, checks what can be checked and does nothing; what starts a command elsewhere runs
it here. What ends with another status than 0 is noted in the file DOCS_FAILED, as it may be in the
background. Where DOCS_ACCEPT is set nothing is run, only checked, and the status is 0. It starts
some hundred times in a test, so it imports late and little.
"""

import json
import os
import socket
import sys

ROOT = os.environ["DOCS_ROOT"]


class Refused(Exception):
    """The program would not take its arguments."""


def require(condition: object, message: str) -> None:
    """Raises Refused unless the condition holds."""
    if not condition:
        raise Refused(message)


def run(*command: str) -> int:
    """Runs a command, by the same stand-ins, in place of this process."""
    sys.stdout.flush()
    os.execvp(command[0], command)


# --- Python ---------------------------------------------------------------------------------------


def python(*arguments: str) -> int:
    """Has the server run it, but for what only installs."""
    if arguments[:1] == ("-m",) and arguments[1] in ("pip", "uv", "venv"):
        return PROGRAMS[arguments[1]](*arguments[2:])
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(os.environ["DOCS_SERVER"])
        message = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
        socket.send_fds(connection, [json.dumps(message).encode()], [0, 1, 2])
        status = connection.recv(100)
    return int(status or 1)


def egmae(*arguments: str) -> int:
    """The command that the package installs; the server has it."""
    return python("egmae", *arguments)


def pytest(*arguments: str) -> int:
    """The same as python -m pytest."""
    return python("-m", "pytest", *arguments)


def pip(*arguments: str) -> int:
    """Installs nothing; extras must be in pyproject.toml, files of requirements be there."""
    import re
    import tomllib

    known = {"install", "download", "uninstall", "list", "show", "freeze", "--version"}
    require(arguments and arguments[0] in known, f"pip has no command {arguments[:1]}")
    with open(f"{ROOT}/pyproject.toml", "rb") as text:
        project = tomllib.load(text)["project"]
    previous = ""
    for argument in arguments[1:]:
        option, _, value = argument.partition("=")
        file = value if option in ("--constraint", "--requirement") else ""
        file = argument if previous in ("-c", "-r", "--constraint", "--requirement") else file
        require(not file or os.path.isfile(file), f"there is no file {file}")
        extras = re.fullmatch(rf"(?:\.|{project['name']})\[(.*)]", argument)
        for extra in extras[1].split(",") if extras else ():
            require(extra in project["optional-dependencies"], f"there is no extra {extra!r}")
        previous = argument
    return 0


def uv(*arguments: str) -> int:
    """`uv pip` is pip, `uv run` runs, and `uv venv` makes nothing."""
    if arguments[:1] == ("pip",):
        return pip(*arguments[1:])
    if arguments[:1] == ("run",):
        return run(*arguments[1:])
    require(arguments[:1] in (("venv",), ("sync",)), f"uv has no command {arguments[:1]}")
    return 0


def venv(*arguments: str) -> int:
    """Makes a folder whose `activate` does nothing, unless it is there."""
    require(len(arguments) == 1, "venv takes a folder")
    folder = os.path.join(arguments[0], "bin")
    os.makedirs(folder, exist_ok=True)
    open(os.path.join(folder, "activate"), "a").close()
    return 0


def make(*arguments: str) -> int:
    """The real one, whose rules call the stand-ins; nothing must be installed before."""
    return os.spawnve(os.P_WAIT, os.environ["DOCS_MAKE"], ["make", *arguments], os.environ)


# --- Elsewhere ------------------------------------------------------------------------------------


def git(*arguments: str) -> int:
    """`git clone` links the repository; nothing else is run."""
    require(arguments, "git needs a command")
    if arguments[0] == "clone":
        require(len(arguments) in (2, 3), "git clone takes an address and a folder")
        name = arguments[1].rstrip("/").rpartition("/")[2].removesuffix(".git")
        target = arguments[2] if arguments[2:] else name
        require(not os.path.exists(target), f"{target} is there")
        os.symlink(ROOT, target)
    return 0


def gcloud(*arguments: str) -> int:
    """`compute tpus tpu-vm ssh --command=...` runs it in the home folder; nothing else is run."""
    require(arguments[:2] == ("compute", "tpus"), f"gcloud {' '.join(arguments[:2])}?")
    require(arguments[2] in ("tpu-vm", "queued-resources"), f"gcloud compute tpus {arguments[2]}?")
    named = [argument for argument in arguments[4:] if not argument.startswith("--")]
    require(len(named) == 1, f"it takes one name, not {named}")
    given = dict(argument.partition("=")[::2] for argument in arguments if "=" in argument)
    require("--zone" in given, "--zone is missing")
    needed = {
        ("tpu-vm", "create"): {"--accelerator-type", "--version"},
        ("queued-resources", "create"): {"--accelerator-type", "--runtime-version", "--node-id"},
        ("tpu-vm", "ssh"): {"--command"},
    }
    missing = needed.get((arguments[2], arguments[3]), set()) - given.keys()
    require(not missing, f"{', '.join(sorted(missing))} is missing")
    if arguments[3] == "ssh":
        os.chdir(os.path.expanduser("~"))
        return run("bash", "-c", given["--command"])
    return 0


def srun(*arguments: str) -> int:
    """Runs the command once. Its options must read --name=value."""
    command = [*arguments]
    while command and command[0].startswith("--"):
        command.pop(0)
    require(command and not command[0].startswith("-"), "srun needs a command")
    return run(*command)


def sbatch(*arguments: str) -> int:
    """Runs the script, and ends as it does. Its options must read --name=value."""
    require(arguments, "sbatch needs a script")
    with open(arguments[-1]) as script:
        lines = script.read().splitlines()
    require(lines[0].startswith("#!"), "the script must begin with #!")
    for line in lines:
        words = line.split()[1:] if line.startswith("#SBATCH") else []
        require(all(word.startswith("--") for word in words), f"what is {line!r}?")
    os.environ["SLURM_JOB_ID"] = "1"
    return run("bash", arguments[-1])


def sudo(*arguments: str) -> int:
    """Nothing is installed or mounted."""
    require(arguments and arguments[0] in ("apt-get", "apt", "mkdir", "mount"), f"sudo {arguments}")
    return 0


def tensorboard(*arguments: str) -> int:
    """Serves nothing; the folder must hold event files."""
    folders = [a.removeprefix("--logdir=") for a in arguments if a.startswith("--logdir=")]
    require(len(folders) == 1, "tensorboard needs one --logdir=FOLDER")
    files = [name for _, _, names in os.walk(folders[0]) for name in names]
    found = any("tfevents" in name for name in files)
    require(found or "DOCS_ACCEPT" in os.environ, f"{folders[0]} has no event files")
    return 0


def hf(*arguments: str) -> int:
    """`hf download REPOSITORY model.safetensors` has the server write weights of noise."""
    require(arguments[:1] in (("download",), ("upload",)), f"hf {arguments[:1]}?")
    if arguments[0] == "upload":
        return 0
    given = dict(a.partition("=")[::2] for a in arguments if a.startswith("--"))
    require(given.keys() <= {"--local-dir"}, f"what is {', '.join(given)}?")
    return python("-m", "tests.docs.weights", arguments[1], *given.values())


def nothing(*_: str) -> int:
    """What cannot be checked, and is of no consequence for what follows."""
    return 0


PROGRAMS = {
    **{
        "python": python,
        "python3": python,
        "egmae": egmae,
        "pytest": pytest,
        "pip": pip,
        "uv": uv,
        "venv": venv,
    },
    **{"make": make, "git": git, "gcloud": gcloud, "srun": srun, "sbatch": sbatch, "sudo": sudo},
    **{"hf": hf, "tensorboard": tensorboard},
    **dict.fromkeys(
        ("scontrol", "ssh", "ruff", "mypy", "lint-imports", "sphinx-build", "xdg-open"), nothing
    ),
}


def main() -> int:
    """Returns the exit status."""
    name, *arguments = sys.argv[1:]
    try:
        status = PROGRAMS[name](*arguments)
    except (Refused, OSError) as error:
        print(f"{name}: {error}")
        status = 2
    if status:
        with open(os.environ["DOCS_FAILED"], "a") as file:
            print(name, *arguments, file=file)
    return 0 if "DOCS_ACCEPT" in os.environ else status


if __name__ == "__main__":
    sys.exit(main())
