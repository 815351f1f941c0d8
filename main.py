"""Runs the recipe: python main.py --config=configs/busi.py --workdir=runs/busi."""

from absl import app, flags
from ml_collections import config_flags

from configs import default
from egmae_jax import config as configs
from egmae_jax import console, experiment

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Recipe, e.g. configs/busi.py:cpu.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for all results; resumes what is in it.")
_STAGE = flags.DEFINE_enum("stage", "all", experiment.STAGES, "Which part of the recipe to run.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
    """Runs the experiment; a mistake of the user ends in a sentence, not in a traceback."""
    console.set_up_logging()
    if argv[1:]:
        console.fail(f"What is {' '.join(argv[1:])!r}? Flags begin with --, such as --stage=all.")
    try:
        experiment.run(_CONFIG.value, _WORKDIR.value, stage=_STAGE.value)
    except experiment.USER_ERRORS as error:
        console.fail(str(error))
    except KeyboardInterrupt:
        console.fail("Stopped. The same command goes on from the last checkpoint.")


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags, with a sentence for whatever is wrong with them."""
    try:
        rest = flags.FLAGS(argv)
        _CONFIG.value.to_dict()  # a config file that is missing is only noticed when it is used
        return rest
    except flags.Error as error:  # where a config raises, its own message is the last line
        console.fail(str(error).strip().splitlines()[-1])
    except OSError:
        console.fail(f"There is no config file {flags.FLAGS['config'].config_filename}.")
    except (
        AttributeError,
        KeyError,
        TypeError,
    ) as error:  # ml_collections: a field that does not exist
        console.fail(configs.explain_unknown_field(argv, default.get_config(), error))


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
