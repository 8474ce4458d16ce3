"""Which card is published: what somebody wrote into one is neither published nor replaced unless they say so."""

from __future__ import annotations

from pathlib import Path

from ..errors import ShortVError, one_line
from ..files import read_regular
from ..hub import retry
from ..packaging import Package, is_as_made, rename_card, unpin_card
from ..records import CARD_NAME
from .repository import Repository

_LARGEST = 16 << 20  # bytes


def card_to_publish(package: Package, repository: Repository) -> bytes:
    """The package's card with the repository's name; or the one on the Hub, which then stays as it is.

    Raises:
        ShortVError: one of them was edited, and `Target.card` does not say what to do (see `check_card`).
    """
    choice = repository.target.card
    if choice == "hub":
        check_card(repository)
        return _card_on_hub(repository)
    try:
        text = read_regular(package.folder / CARD_NAME, folder=package.folder, most=_LARGEST).decode()
    except UnicodeDecodeError:
        raise ShortVError(f"the {CARD_NAME} of {package.name} is not UTF-8 text; package the base again.") from None
    if choice is None and not is_as_made(text):
        raise ShortVError(
            f"the {CARD_NAME} of {package.name} was edited; publish it as it is with `card` package, "
            "or package the base again."
        )
    named = rename_card(text, repository.repo_id)
    # Who proposes sets no tag; what the card tells to load must be there after the merge.
    unpinned = repository.target.create_pr and package.tag not in repository.tags
    return (unpin_card(named, package.tag) if unpinned else named).encode()


def check_card(repository: Repository) -> None:
    """Looks at the card that is on the Hub.

    Raises:
        ShortVError: it was edited there, and `Target.card` does not say what to do; or there is none to keep.
    """
    choice, there = repository.target.card, CARD_NAME in repository.files
    if choice == "hub" and not there:
        raise ShortVError(f"{repository.repo_id} has no card to keep; leave out `card`.")
    if (
        choice is None
        and there
        and repository.is_ours
        and not is_as_made(_card_on_hub(repository).decode("utf-8", "replace"))
    ):
        raise ShortVError(
            f"the card of {repository.repo_id} was edited on the Hub; keep it with `card` hub, "
            "or replace it with `card` package."
        )


def check_metadata(card: bytes) -> None:
    """Asks the Hub whether it accepts a card's metadata: a commit would fail over it, after everything else.

    Raises:
        ShortVError: it does not.
    """
    import yaml
    from huggingface_hub import RepoCard

    def ask() -> None:
        metadata = RepoCard(card.decode())
        metadata.text = ""
        metadata.validate(repo_type="model")

    try:
        retry(ask, "the Hub", passing=(ValueError, yaml.YAMLError))
    except (ValueError, yaml.YAMLError) as error:
        raise ShortVError(f"the Hub does not accept the metadata of the {CARD_NAME}: {one_line(error)}") from None


def _card_on_hub(repository: Repository) -> bytes:
    api, repo_id, head = repository.api, repository.repo_id, repository.head
    path = Path(retry(lambda: api.hf_hub_download(repo_id, CARD_NAME, revision=head), f"{repo_id}'s {CARD_NAME}"))
    return read_regular(path, folder=path.parent, most=_LARGEST)
