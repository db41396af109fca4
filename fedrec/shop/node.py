"""One shop as a federation sees it: it answers plans with releases, and with nothing else.

For worker processes, Ray and ``flwr run`` the shops of a simulation are written to files, one a shop, so that
a process opens the shop it answers for and no other.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import sparse

from fedrec.errors import BadMessage, ConfigError, MessageTooLarge, PrivacyError, StoreError
from fedrec.federation.anchors import Anchored
from fedrec.federation.plan import RoundPlan, agreement, items_digest, model_settings
from fedrec.federation.release import MakeNoise, Mask, PrivateDoor, Release, release
from fedrec.federation.run_record import write_atomically
from fedrec.federation.secure_round import Step
from fedrec.federation.shop_side import Contribution, contribute, contribute_on_grid
from fedrec.federation.terms import Terms
from fedrec.models import load_model, reference_of, settings_of
from fedrec.models.recommender import LocalStepsModel, PublicInputs, Recommender, RoundKind
from fedrec.privacy.draws import Draws, shopper_digests
from fedrec.privacy.ledger import Budget, Ledger
from fedrec.privacy.noise import SecureNoise
from fedrec.secure_aggregation.keys import IdentityKey
from fedrec.secure_aggregation.shop_session import ShopSession
from fedrec.shop.masking import Masking, forget

_log = logging.getLogger("fedrec.shop")

FILES_FORMAT = 4
IN_MEMORY = "sqlite://"
"""URL of a database that ends with this process."""

FILES_FOLDER = "federation"
"""Folder in the run directory that holds the roster and one file a shop."""


@dataclass(frozen=True, repr=False)
class ShopNode:
    """One shop's side of all rounds.

    Attributes:
        name: shop id on the roster.
        model: the model the shop agreed to train; a plan for another one is refused.
        histories: float32 CSR, (num_shoppers, num_items) in the federation's item space.
        agreement: model and terms that the shop agreed to, as `RoundPlan.agreement` writes them.
        ledger: the shop's privacy ledger; None in research mode.
        make_noise: where noise comes from; the operating system's randomness, but in tests.
        masking: the shop's keys of secure aggregation; None where the terms ask for none.
        digests: uint8, (num_shoppers, 16), from `shopper_digests`: whose row is which, for what is drawn per shopper;
            None = the rows' numbers, for rows that nobody will ever be removed from.
        most_bytes: a round that asks for a larger sum is refused before anything is computed; None = any.
        anchored: who keeps the ledger's heads outside the shop; None = nobody, so that an older copy goes unnoticed.
    """

    name: str
    model: Recommender
    histories: sparse.csr_matrix
    agreement: bytes
    ledger: Ledger | None = None
    make_noise: MakeNoise = SecureNoise
    anchored: Anchored | None = None
    masking: Masking | None = None
    digests: np.ndarray | None = None
    most_bytes: int | None = None

    def __repr__(self) -> str:
        return f"ShopNode({self.name!r}, histories={self.histories.shape})"

    def _contribution(self, plan: RoundPlan, draws: Draws) -> Contribution:
        """The sum, or zeros where it cannot be computed, which the shop's own log alone says.

        A round that failed for some data and not for other would tell which it was, past noise, masks and charge: so it
        leaves like any other. That one shopper makes it fail is not covered by her bound (zeros are further from the
        sum than C): a model's sums must not fail on a row, and those of fedrec's own don't. In research mode without
        masks there is nothing to hide, and the failure is raised.
        """
        is_private = plan.terms.privacy is not None
        try:
            return (contribute_on_grid if is_private else contribute)(self.model, plan, self.histories, draws)
        except Exception:
            if plan.terms.ring(plan.index) is None:
                raise
            _log.exception("shop %s could not compute its sum of round %d; zeros count in it", self.name, plan.index)
            return Contribution(np.zeros(plan.num_values, np.int64 if is_private else np.float64), plan.spec.layout)

    def _draws(self, plan: RoundPlan) -> Draws:
        """A round's randomness: fresh and secret under a privacy spec, where a release is never computed twice.

        In research mode it follows from run, shop and round, so that a run can be repeated.
        """
        digests = shopper_digests(range(self.histories.shape[0])) if self.digests is None else self.digests
        if plan.terms.privacy is not None:
            return Draws.fresh(digests)
        return Draws.seeded(f"{plan.terms.run_id}/{self.name}/{plan.index}", digests)

    def answer(self, plan: RoundPlan, delivery: bytes = b"") -> Release:
        """The shop's release for one round.

        Args:
            plan: what is asked.
            delivery: what the other shops dealt to this one, with secure aggregation.
        Raises:
            BadMessage: the plan is for other shops, another model, other settings or another item space.
            NotFinite: the sum is not finite (research mode).
            PrivacyError: the budget or the agreed schedule does not allow the round.
        """
        if self.name not in plan.terms.roster:
            raise BadMessage(f"plan of round {plan.index} is for a roster without shop {self.name!r}")
        if self.name not in plan.terms.asked(plan.spec.kind, plan.index, plan.attempt):
            raise BadMessage(f"round {plan.index} asks other shops than {self.name!r}, by its own draw")
        if plan.agreement != self.agreement:
            raise BadMessage(
                f"plan of round {plan.index} trains {plan.model_name!r} on other terms than the shop agreed to "
                f"({self.model.name!r}): model, settings, items or terms differ"
            )
        if self.most_bytes is not None and 8 * plan.num_values > self.most_bytes:
            raise MessageTooLarge(f"a sum of {plan.num_values:,} values; policy.max_message_mb bounds it")
        mask = None
        if plan.terms.secure is not None:
            if self.masking is None:
                raise PrivacyError(f"shop {self.name!r} has no keys of secure aggregation: nothing leaves unmasked")
            self.masking.accept(plan, delivery)
            mask = self.masking.mask_for(plan)
        if plan.terms.privacy is None:
            return release(self._contribution(plan, self._draws(plan)), plan, mask)
        if self.ledger is None:
            raise PrivacyError(f"shop {self.name!r} has no privacy ledger: nothing leaves under a privacy spec")
        if self.anchored is not None:
            self.anchored.check(self.ledger)
        door = PrivateDoor(plan, self.ledger, self.make_noise)
        released = door.stored() or self._release(door, plan, mask)
        if self.anchored is not None:
            self.anchored.keep(self.ledger)
        return released

    def _release(self, door: PrivateDoor, plan: RoundPlan, mask: Mask | None) -> Release:
        """A new release under a privacy spec; every step of a local update has draws of its own."""
        draws = self._draws(plan)
        if plan.spec.kind is not RoundKind.LOCAL_UPDATE:
            return door.release(self._contribution(plan, draws), mask)
        if not isinstance(self.model, LocalStepsModel):
            raise ConfigError(f"model {self.model.name!r} has no local updates of noisy steps")
        steps = replace(self.model)  # type: ignore[type-var]  # another object than the one that sees histories
        return door.release_update(
            steps, lambda step, number: self._contribution(step, draws.of(f"step {number}")), mask
        )

    def step(self, step: Step, data: bytes) -> bytes:
        """The shop's answer to an exchange of secure aggregation; nothing in it depends on a shopper.

        Raises:
            PrivacyError: the shop takes part in none.
            BadMessage, ProtocolError: see `ShopSession`.
        """
        if self.masking is None:
            raise PrivacyError(f"shop {self.name!r} takes part in no secure aggregation")
        return self.masking.answer(step, data)


def simulated_identities(num_shops: int) -> tuple[IdentityKey, ...]:
    """Keys of the shops of a simulation, new ones."""
    return tuple(IdentityKey.generate() for _ in range(num_shops))


def shop_nodes(
    model: Recommender,
    public: PublicInputs,
    terms: Terms,
    histories: Sequence[sparse.csr_matrix],
    *,
    ledger_url: str = IN_MEMORY,
    make_noise: MakeNoise = SecureNoise,
    anchors: Mapping[str, Anchored] | None = None,
    identities: Sequence[IdentityKey] = (),
    shoppers: Sequence[np.ndarray] = (),
) -> tuple[ShopNode, ...]:
    """The shops of a simulation, all in this process, in roster order; they agree to these terms and no others.

    Args:
        ledger_url: database of the shops' ledgers, one ledger a shop; used under a privacy spec.
        make_noise: for tests.
        anchors: by shop; None = nobody keeps the heads of their ledgers.
        identities: the shops' keys, in roster order; needed where the terms ask for secure aggregation.
        shoppers: str, (num_shoppers,) each; ids of the histories' rows, in roster order. Empty = the rows' numbers.
    """
    agreed = agreement(model.name, model_settings(model), items_digest(public), terms)
    nodes = []
    for place, (name, table) in enumerate(zip(terms.roster, histories, strict=True)):
        if table.shape[1] != public.num_items:
            raise ConfigError(f"shop {name!r}: histories over {table.shape[1]} items, the list has {public.num_items}")
        ledger = simulated_ledger(terms, name, ledger_url)
        masking = None
        if terms.secure is not None:
            masking = Masking(ShopSession(terms.secure, name, identities[place], terms.run_id))
        digests = shopper_digests(shoppers[place]) if len(shoppers) else None
        anchored = (anchors or {}).get(name)
        nodes.append(ShopNode(name, model, table, agreed, ledger, make_noise, anchored, masking, digests))
    return tuple(nodes)


def simulated_ledger(terms: Terms, shop: str, url: str) -> Ledger | None:
    """The ledger of a simulated shop, made with the run's own budget where it is new; None in research mode."""
    if terms.privacy is None:
        return None
    return Ledger.open(url, shop, budget=Budget(terms.privacy.epsilon, terms.privacy.delta))


@dataclass(frozen=True)
class FederationFiles:
    """What `write_shop_files` wrote, but the histories.

    Attributes:
        folder: where the files are.
        model, public, terms: as the coordinator takes them.
        agreement: of all of them.
        ledger_url: database of the shops' ledgers.
    """

    folder: Path
    model: Recommender
    public: PublicInputs
    terms: Terms
    agreement: bytes
    ledger_url: str

    def node(self, position: int) -> ShopNode:
        """Open one shop, by its place in the roster."""
        roster = self.terms.roster
        if not 0 <= position < len(roster):
            raise ConfigError(f"partition-id {position}: the roster has {len(roster)} shops")
        histories = _load_csr(_histories_path(self.folder, position))
        digests = np.load(_digests_path(self.folder, position), allow_pickle=False)
        ledger = simulated_ledger(self.terms, roster[position], self.ledger_url)
        masking = None
        if self.terms.secure is not None:
            identity = IdentityKey.load(_key_path(self.folder, position))
            session = ShopSession(self.terms.secure, roster[position], identity, self.terms.run_id)
            masking = Masking(session, _masking_path(self.folder, position))
        return ShopNode(
            roster[position], self.model, histories, self.agreement, ledger, masking=masking, digests=digests
        )


def write_shop_files(
    run_dir: Path,
    model: Recommender,
    public: PublicInputs,
    terms: Terms,
    histories: Sequence[sparse.csr_matrix],
    *,
    ledger_url: str = IN_MEMORY,
    identities: Sequence[IdentityKey] = (),
    shoppers: Sequence[np.ndarray] = (),
) -> Path:
    """Write what other processes need to run this federation: roster, items, content, one file of raw histories a shop.

    Args:
        run_dir: the run's folder; the files go to ``federation/`` in it.
        model: an importable class, a frozen dataclass of its settings.
        public: the federation's item space.
        terms: who takes part, and what is promised.
        histories: CSR, (num_shoppers, num_items) each, in roster order.
        ledger_url: database of the shops' ledgers, which other processes can open; needed under a privacy spec.
        identities: the shops' keys, in roster order; needed where the terms ask for secure aggregation.
        shoppers: as `shop_nodes` takes them.
    Returns:
        The folder written.
    Raises:
        ConfigError: the model's class cannot be imported by its name, as other processes must, or ledgers in memory.
    """
    if terms.privacy is not None and ledger_url == IN_MEMORY:
        raise ConfigError("privacy ledgers in memory cannot be shared with other processes: give a database")
    reference = reference_of(model)
    load_model(reference, settings_of(model))  # refused here, where the reason can be seen, not in every process
    folder = Path(run_dir) / FILES_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for position, (_, table) in enumerate(zip(terms.roster, histories, strict=True)):
        _save_csr(_histories_path(folder, position), table)
        ids = shoppers[position] if len(shoppers) else range(table.shape[0])
        np.save(_digests_path(folder, position), shopper_digests(ids), allow_pickle=False)
        if terms.secure is not None:
            _key_path(folder, position).unlink(missing_ok=True)
            forget(_masking_path(folder, position))
            identities[position].save(_key_path(folder, position))
    np.save(folder / "items.npy", np.asarray([str(key) for key in public.items.tolist()], dtype=np.str_))
    if public.content is not None:
        _save_csr(folder / "content.npz", public.content)
    about = {
        "format": FILES_FORMAT,
        "model": reference,
        "settings": settings_of(model),
        "terms": terms.to_json(),
        "has_content": public.content is not None,
        "ledger_url": ledger_url,
    }
    write_atomically(folder / "roster.json", json.dumps(about, indent=1, allow_nan=False).encode())
    return folder


def read_shop_files(run_dir: Path) -> FederationFiles:
    """Read what `write_shop_files` wrote; histories stay on disk until a node is opened.

    Raises:
        StoreError: a file is missing or not of this version.
        ConfigError: the model cannot be imported.
    """
    folder = Path(run_dir) / FILES_FOLDER
    try:
        about = json.loads((folder / "roster.json").read_bytes())
        if about["format"] != FILES_FORMAT:
            raise StoreError(f"{folder}: shop files of format {about['format']!r}, expected {FILES_FORMAT}")
        items = np.load(folder / "items.npy", allow_pickle=False)
        content = _load_csr(folder / "content.npz") if about["has_content"] else None
        public = PublicInputs(items, content)
        model = load_model(about["model"], about["settings"])
        terms = Terms.from_json(about["terms"])
        return FederationFiles(
            folder=folder,
            model=model,
            public=public,
            terms=terms,
            agreement=agreement(model.name, model_settings(model), items_digest(public), terms),
            ledger_url=about["ledger_url"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{folder}: no readable shop files ({type(error).__name__}); run-dir must be a folder that "
            "`fedrec simulate` prepared for other processes"
        ) from error


def _histories_path(folder: Path, position: int) -> Path:
    return folder / f"shop-{position:05d}.npz"


def _digests_path(folder: Path, position: int) -> Path:
    return folder / f"shop-{position:05d}.npy"


def _key_path(folder: Path, position: int) -> Path:
    return folder / f"shop-{position:05d}.key"


def _masking_path(folder: Path, position: int) -> Path:
    return folder / f"shop-{position:05d}.masking"


def _save_csr(path: Path, matrix: sparse.csr_matrix) -> None:
    csr = sparse.csr_matrix(matrix)
    with open(path, "wb") as file:
        np.savez(file, data=csr.data, indices=csr.indices, indptr=csr.indptr, shape=np.asarray(csr.shape))


def _load_csr(path: Path) -> sparse.csr_matrix:
    with np.load(path, allow_pickle=False) as parts:
        shape = (int(parts["shape"][0]), int(parts["shape"][1]))
        return sparse.csr_matrix((parts["data"], parts["indices"], parts["indptr"]), shape=shape)
