"""Where the files of a model are: what ships, a folder, or the hub."""

from pathlib import Path

from imagen_nb.store.files import assets


def find_model(
    name: str | Path,  # a directory, a hub repository, or "toy"
) -> Path:  # a local directory
    "Where a model's files are; a hub name is downloaded."
    if str(name) == "toy":
        if (path := assets() / "toy").is_dir():
            return path
        raise ValueError(
            "find_model: 'toy', got no toy weights in this installation, expected"
            " some; run `imagen-nb train toy --out runs/toy`, load 'runs/toy/model'"
        )
    if Path(name).is_dir():
        return Path(name)
    if str(name).count("/") == 1 and not str(name).startswith((".", "/", "~")):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(str(name), allow_patterns=["*.safetensors", "*.json"]))
        except Exception as e:  # the hub's client raises many kinds
            raise ValueError(
                f"find_model: {name}, no such directory, and not to be had from the hub"
                f" ({type(e).__name__}: {str(e).splitlines()[0]})"
            ) from e
    raise ValueError(
        f"find_model: {name}, no such directory;"
        " expected a directory, 'toy' or a hub name 'user/model'"
    )
