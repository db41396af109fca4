"""``fedrec shop serve | refresh``: the recommend API of one shop or several, and models made ready for it."""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedrec.errors import ConfigError, FedrecError, StoreError

if TYPE_CHECKING:
    from fedrec.role_config import ShopSettings
    from fedrec.shop.api.arms import OpenModel
    from fedrec.shop.api.live_shop import LiveShop
    from fedrec.shop.lists.serving_model import ServingModel

SPLIT_KEY_FILE = "split.key"


def serve(
    folders: Annotated[list[Path] | None, typer.Argument(metavar="[DIR]...", help="Folders of the shops.")] = None,
    host: Annotated[str, typer.Option(help="Interface to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 = a free one.")] = 8080,
    demo: Annotated[bool, typer.Option("--demo", help="Make a shop of the built-in marketplace and serve it.")] = False,
    origin: Annotated[
        list[str] | None, typer.Option(metavar="URL", help="A page whose scripts may call, such as https://shop.org.")
    ] = None,
    certificate: Annotated[Path | None, typer.Option(metavar="FILE", help="PEM; serves HTTPS.")] = None,
    private_key: Annotated[Path | None, typer.Option(metavar="FILE", help="PEM, of the certificate.")] = None,
    behind_proxy: Annotated[
        bool, typer.Option("--behind-proxy", help="Plain HTTP off this machine: something else ends TLS.")
    ] = False,
    log_format: Annotated[str, typer.Option("--log", help="text or json.")] = "text",
) -> None:
    """Answer a website's requests for lists and take its events; ends with Ctrl-C.

    \b
    [bold]Examples[/]
      fedrec shop serve --demo
      fedrec shop serve shops/north shops/south --port 8080
    """
    from fedrec.cli.logs import log_to_stderr
    from fedrec.shop.api.app import make_app
    from fedrec.shop.api.serving import Address
    from fedrec.shop.api.serving import serve as run

    log_to_stderr(log_format)
    address = Address(host, port, certificate, private_key, behind_proxy)
    chosen = list(folders or [])
    with ExitStack() as until_the_end:
        if demo and len(chosen) > 1:
            raise ConfigError("--demo makes one shop: give one folder, or none for a temporary one")
        if demo and not chosen:
            chosen.append(Path(until_the_end.enter_context(tempfile.TemporaryDirectory(prefix="fedrec-"))) / "demo")
        if not chosen:
            raise ConfigError("give the folder of a shop (fedrec shop init makes one), or --demo")
        words = None
        if demo:
            from fedrec.cli.shop_demo import make_demo

            words = make_demo(chosen[0])

        def application() -> Any:
            shops = {shop.name: shop for shop in map(open_live_shop, chosen)}
            if len(shops) < len(chosen):
                raise ConfigError("two of the shops have one name; a key could not tell them apart")
            return make_app(shops, origins=origin or ())

        def announce(url: str) -> None:
            typer.echo(f"serves {', '.join(map(str, chosen))} at {url}")
            if words is not None:
                typer.echo(words.replace("URL", url))

        run(application, address, announce)


def refresh(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The shop's folder.")],
    version: Annotated[str | None, typer.Option(help="A model version; else the current one.")] = None,
    if_erased: Annotated[
        bool, typer.Option("--if-erased", help="Only what was made with events of somebody who was erased since.")
    ] = False,
) -> None:
    """Make a model ready to serve, from the shop's events of now; a running server takes it over by itself."""
    from fedrec.role_config import read_shop
    from fedrec.shop.adoption import current_version
    from fedrec.shop.member import MODELS_FOLDER

    settings = read_shop(folder)
    if if_erased:
        chosen = [one for one in stale_models(folder, settings) if version in (None, one)]
        if not chosen:
            typer.echo("nobody was erased since what is ready to be served was made")
    else:
        chosen = [version or current_version(folder / MODELS_FOLDER)]
    for one in chosen:
        make_ready(folder, settings, one)
        typer.echo(f"version {one} is ready to be served")


def stale_models(folder: Path, settings: ShopSettings) -> list[str]:
    """Versions that hold what they learned of somebody who was erased since."""
    from fedrec.role_config import open_store
    from fedrec.shop.lists.serving_files import stale_versions
    from fedrec.shop.member import MODELS_FOLDER

    with open_store(folder, settings) as store:
        return stale_versions(folder / MODELS_FOLDER, store.generation())


def open_live_shop(folder: Path) -> LiveShop:
    """A shop's folder, ready to be served; its model is made ready first where there is none that can be opened.

    Raises:
        ConfigError, StoreError: the folder's settings or store cannot be used, or no model can be served.
    Guarantee: a model that was made ready under another ``inside_shop`` than the shop's file asks for is not served.
    """
    from fedrec.models.text_encoder import SentenceEncoder
    from fedrec.role_config import open_store, read_shop
    from fedrec.shop.api.encoding import Encoding
    from fedrec.shop.api.live_shop import LiveShop
    from fedrec.shop.lists.serving_files import open_serving
    from fedrec.shop.lists.serving_model import InsideShop
    from fedrec.shop.past_releases import past_releases
    from fedrec.shop.store.imports import import_events

    settings = read_shop(folder)
    encoder = settings.serving.text_encoder
    encoding = None if encoder is None else Encoding(SentenceEncoder(Path(encoder)), folder)
    store = open_store(folder, settings)
    if not settings.data.store and not store.num_events():
        typer.echo(f"{folder}: imports the file that the shop trains on", err=True)
        is_joint_dp = settings.serving.inside_shop is InsideShop.JOINT_DP
        import_events(store, settings.data.data_settings(), settings.name, is_declared=is_joint_dp)

    def open_model(models: Path, version: str) -> ServingModel:
        model = open_serving(models, version)
        if model.served.inside_shop is not settings.serving.inside_shop:
            raise StoreError(f"version {version} was made ready with inside_shop = {model.served.inside_shop}")
        return model

    _make_one_ready(folder, settings, open_model)
    serving = settings.serving.settings()
    split_key = b"" if serving.split is None else _split_key(folder / SPLIT_KEY_FILE)
    return LiveShop(
        settings.name,
        folder,
        store,
        serving,
        open_model=open_model,
        outside=lambda: past_releases(folder, settings.name).epsilon,
        split_key=split_key,
        encoding=encoding,
        trains_on_store=settings.data.store,
    )


def _make_one_ready(folder: Path, settings: ShopSettings, open_model: OpenModel) -> None:
    """See to it that the current model (or else the shop's own) and a split's can be opened; what fails is said."""
    from fedrec.shop.adoption import LOCAL, current_version
    from fedrec.shop.member import MODELS_FOLDER

    models = folder / MODELS_FOLDER
    try:
        current = current_version(models)
    except StoreError:
        current = LOCAL  # the server says so in its health

    def is_ready(version: str) -> bool:
        try:
            open_model(models, version)
            return True
        except StoreError:
            typer.echo(f"{folder}: makes version {version} ready", err=True)
        try:
            make_ready(folder, settings, version)
            return True
        except FedrecError as error:
            typer.echo(f"{folder}: version {version} cannot be made ready: {error}", err=True)
            return False

    any(map(is_ready, dict.fromkeys((current, LOCAL))))
    if settings.serving.split is not None:
        is_ready(settings.serving.split.version)


def make_ready(folder: Path, settings: ShopSettings, version: str) -> None:
    """Write what a version is served from; of a store without events to train on, what the catalogue says.

    Raises:
        DataError: the shop's file has no events to make it from.
        StoreError, ConfigError: see `fedrec.shop.lists.serving_files.prepare`.
    """
    from scipy import sparse

    from fedrec.role_config import open_store
    from fedrec.shop.enrol import read_own_data
    from fedrec.shop.lists.serving_files import Serving, prepare
    from fedrec.shop.member import MODELS_FOLDER
    from fedrec.shop.own_data import NothingToTrainOn, StoreData, catalogue_of
    from fedrec.shop.past_releases import past_releases

    about, name, how = settings.data, settings.name, settings.serving.preparation()
    with open_store(folder, settings) as store:
        generation = store.generation()  # first: who is erased meanwhile makes it stale
    if how.serving is Serving.JOINT_DP:
        with open_store(folder, settings) as store:
            public = catalogue_of(store)
        rows = sparse.csr_matrix((0, public.num_items), dtype="float32")
    elif about.store:
        with open_store(folder, settings) as store:
            source = StoreData(store, name, validation="none", kinds=about.train_on, min_rating=about.min_rating)
            try:
                data, public = source.read()
                rows = data.train
            except NothingToTrainOn as error:  # a new shop: what is popular, and by words
                typer.echo(f"{folder}: {error}; until then lists are what is popular or alike in words", err=True)
                public = catalogue_of(store)
                rows = sparse.csr_matrix((0, public.num_items), dtype="float32")
    else:
        data, public = read_own_data(about.data_settings(), name, validation="none")
        rows = data.train
    prepare(
        folder / MODELS_FOLDER,
        version,
        rows,
        public,
        settings=how,
        personalisation=settings.personalisation,
        spent_epsilon=past_releases(folder, name).epsilon,
        generation=generation,
    )


def _split_key(path: Path) -> bytes:
    """The shop's key that shoppers are split by, made at the first start."""
    try:
        if not path.exists():
            with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
                file.write(secrets.token_bytes(32))
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path}: cannot be read or made ({error.strerror})") from error
