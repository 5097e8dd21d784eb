"""Where a model is: a path, a model that comes with vcd, or one on the Hugging Face Hub."""

import re
from pathlib import Path
from types import ModuleType

from vcd.errors import UserError
from vcd.exports import FACTS, WEIGHTS

SHIPPED = Path(__file__).resolve().parent / "pretrained"
MESSAGE = "A model of vcd"
ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # user/name


def shipped() -> list[str]:
    """The models that come with vcd."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{FACTS}"))


def find(name: str | Path, *, revision: str | None = None, token: str | bool | None = None) -> Path:
    """The file or folder: one of this path, the shipped model of this name, or else a download of user/name, kept.

    Any other name is returned as it is. UserError where there is no such model on the Hub, or no way to it.
    """
    path, text = Path(name), str(name)
    if path.exists():
        return path
    if text in shipped():
        return SHIPPED / text
    if ID.fullmatch(text) and path.suffix != ".ckpt" and not path.parent.exists():
        return _download(text, revision, token)
    return path


def push(
    folder: Path, repo_id: str, *, private: bool | None, token: str | None, revision: str | None, message: str
) -> str:
    """Upload an exported folder as user/name, in one commit; the commit's address. UserError where that fails."""
    hub = _package(f"to push {repo_id}")
    try:
        api = hub.HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision, commit_message=message))
    except Exception as error:  # of the network, of the Hub, of the account
        raise UserError(f"{repo_id} could not be pushed ({_reason(error)}): is the account logged in, `hf auth login`, and "
                        "the Hub within reach?") from error  # fmt: skip


def _download(repo_id: str, revision: str | None, token: str | bool | None) -> Path:
    hub = _package(f"{repo_id} is no file or folder here, and to look for it on the Hugging Face Hub")
    try:
        facts = Path(hub.hf_hub_download(repo_id, FACTS, revision=revision, token=token))
        commit = facts.parent.name  # both of one commit, whatever is pushed meanwhile
        return Path(hub.hf_hub_download(repo_id, WEIGHTS, revision=commit, token=token)).parent
    except Exception as error:  # no such model, no network, a model of something else
        raise UserError(
            f"{repo_id} is no file or folder here, and the Hugging Face Hub does not give it ({_reason(error)})"
        ) from error


def _package(who: str) -> ModuleType:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise UserError(f"{who} needs huggingface_hub, which is not installed: pip install 'vcd[hub]'") from error
    return huggingface_hub


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0].rstrip(". ")
