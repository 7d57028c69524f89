"""The manifest: what ``manifest.json`` says about the model in a bundle, with a type for everything that code reads."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgemem.contract import Contract
from edgemem.decoder_config import DecoderConfig
from edgemem.errors import BundleError, ConfigError, ContractError
from edgemem.generation_defaults import GenerationDefaults
from edgemem.precision import Precision
from edgemem.versioned import Fields, JsonFormat

MANIFEST_FORMAT = JsonFormat(
    "edgemem.bundle",
    "an edgemem manifest",
    BundleError,
    way_out="export the model again with: edgemem export SOURCE --out BUNDLE",
    versions=(1, 2, 3),
    digest_since=2,
)
# The first bundles do not have these entries.
_LATER_ENTRIES: dict[str, Any] = {"special_tokens": {}, "generation": {}, "precision": {}}
_ENTRIES = (
    *("format", "version", "created", "source", "input_meaning", "tokenizer", *_LATER_ENTRIES),
    *("graphs", "files", "versions", "verification", "model", "contract"),
)

TRANSFORMERS = "transformers"
"""Kind of the source of a bundle that was made of a Hugging Face model."""
ADOPTED = "onnx"
"""Kind of the source of a bundle that was made of an ONNX file of others."""


@dataclass(frozen=True)
class GraphFile:
    """One ONNX file of a bundle.

    Attributes:
        file: Name in the bundle's folder.
        min_time: Fewest time steps one call takes.
        max_time: Most time steps one call takes.
        native: The same graph with edgemem's own operators, which the CPU runs where they are installed; ``None``:
            there is none.
    """

    file: str
    min_time: int
    max_time: int
    native: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, for the manifest."""
        native = {} if self.native is None else {"native": self.native}
        return {"file": self.file, "time": [self.min_time, self.max_time], **native}

    @classmethod
    def from_json(cls, fields: Fields) -> GraphFile:
        """Read what :meth:`to_json` wrote."""
        fields.only("file", "time", "native")
        time = fields.items("time", int, "[fewest steps, most steps]")
        if len(time) != 2 or not 1 <= time[0] <= time[1]:
            raise fields.wrong("time", "[fewest steps, most steps]")
        native = fields.text("native") if "native" in fields.values else None
        return cls(fields.text("file"), time[0], time[1], native)


@dataclass(frozen=True)
class LoadOptions:
    """How loading the source limited the memory of a transformers model; ``None`` where it did not.

    Attributes:
        memory: The value of ``--memory``, such as ``"sinks=4,window=1024"``.
        max_length: The value of ``--max-length``.
    """

    memory: str | None = None
    max_length: int | None = None

    def to_json(self) -> dict[str, str | int]:
        """The options that are set."""
        values = {"memory": self.memory, "max_length": self.max_length}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_json(cls, fields: Fields) -> LoadOptions:
        """Read what :meth:`to_json` wrote."""
        fields.only("memory", "max_length")
        return cls(
            fields.text("memory") if "memory" in fields.values else None,
            fields.integer("max_length", least=1) if "max_length" in fields.values else None,
        )

    def __str__(self) -> str:
        """The options as one types them.

        >>> str(LoadOptions(max_length=24))
        '--max-length 24'
        """
        return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in self.to_json().items())


@dataclass(frozen=True)
class SourceInfo:
    """Where a model came from.

    Attributes:
        kind: ``"checkpoint"``, ``"config"``, ``"transformers"``, ``"factory"``, ``"module"`` or :data:`ADOPTED`.
        name: What the user named.
        random_weights: Whether it was never trained.
        options: How it was loaded.
        fixed: Inputs of an adopted file that are constants, with their values.
        rewritten: Whether operators of an adopted file were written in another form: equal within rounding.
        stored_dtype: ``"bfloat16"`` or ``"float16"`` where the checkpoint's weights are stored in it, else ``""``. What
            the bundle's are stored in, :class:`~edgemem.precision.Precision` says.
    """

    kind: str = ""
    name: str = ""
    random_weights: bool = False
    options: LoadOptions = LoadOptions()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    rewritten: bool = False
    stored_dtype: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, for the manifest."""
        found = {"kind": self.kind, "name": self.name, "random_weights": self.random_weights}
        more: dict[str, Any] = {"options": self.options.to_json(), "fixed": dict(self.fixed)}
        more |= {"rewritten": self.rewritten, "stored_dtype": self.stored_dtype}
        return found | {name: value for name, value in more.items() if value}

    @classmethod
    def from_json(cls, fields: Fields) -> SourceInfo:
        """Read what :meth:`to_json` wrote."""
        defaults = {"kind": "", "name": "", "random_weights": False, "options": {}, "fixed": {}}
        defaults |= {"rewritten": False, "stored_dtype": ""}
        fields = fields.with_defaults(defaults).only(*defaults)
        return cls(
            fields.text("kind"),
            fields.text("name"),
            fields.flag("random_weights"),
            LoadOptions.from_json(fields.object("options")),
            fields.object("fixed").values,
            fields.flag("rewritten"),
            fields.text("stored_dtype"),
        )


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` says.

    Attributes:
        contract: The state contract of every graph in the bundle.
        graphs: The graphs; together they take every T from 1 to ``contract.max_chunk``, or T = 1 alone.
        files: Name of every file in the bundle → (SHA-256, bytes).
        source: Where the model came from.
        model: The decoder's configuration, from which the torch runtime rebuilds the model; ``None`` for a user's
            own module.
        precision: In what the bundle computes and stores its weights.
        tokenizer: ``"bytes"``, the name of a tokenizer file in the bundle, or ``None``.
        special_tokens: Text of the tokens that a chat template asks for by name: ``bos_token``, ``eos_token`` …
        generation: Default options for generating text.
        input_meaning: One line for people: what the input is.
        versions: Versions of the packages that wrote the bundle.
        verification: What the export's own check measured, as JSON: it is shown to people, and no code depends on it.
        created: ISO 8601 time, UTC.
    """

    contract: Contract
    graphs: tuple[GraphFile, ...]
    files: dict[str, tuple[str, int]] = field(default_factory=dict)
    source: SourceInfo = SourceInfo()
    model: DecoderConfig | None = None
    precision: Precision = Precision()  # noqa: RUF009 (immutable)
    tokenizer: str | None = None
    special_tokens: dict[str, str] = field(default_factory=dict)
    generation: GenerationDefaults = GenerationDefaults()  # noqa: RUF009 (immutable)
    input_meaning: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    verification: dict[str, Any] = field(default_factory=dict)
    created: str = ""

    @property
    def fingerprint(self) -> str:
        """Identity of the model: SHA-256 over its contract and its files' hashes, in hexadecimal."""
        other_forms = {graph.native for graph in self.graphs}  # of the same model: snapshots outlive them
        files = [f"{name}:{sha}" for name, (sha, _) in sorted(self.files.items()) if name not in other_forms]
        parts = [self.contract.fingerprint, *files]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain JSON values."""
        return MANIFEST_FORMAT.stamp(
            {
                "created": self.created,
                "source": self.source.to_json(),
                "input_meaning": self.input_meaning,
                "tokenizer": self.tokenizer,
                "special_tokens": self.special_tokens,
                "generation": self.generation.to_json(),
                "graphs": [graph.to_json() for graph in self.graphs],
                "files": {name: {"sha256": sha, "bytes": size} for name, (sha, size) in sorted(self.files.items())},
                "versions": self.versions,
                "verification": self.verification,
                "precision": self.precision.to_json(),
                "model": self.model.to_json() if self.model else None,
                "contract": self.contract.to_json(),
            }
        )

    @classmethod
    def from_json(cls, data: Any, where: str = "the manifest") -> Manifest:
        """Read what :meth:`to_json` wrote.

        Raises:
            BundleError: It is not a manifest of a version known here, or it is malformed.
        """
        fields = MANIFEST_FORMAT.check(data, where).with_defaults(_LATER_ENTRIES).only(*_ENTRIES)
        files = fields.object("files")
        try:
            manifest = cls(
                contract=Contract.from_json(fields.take("contract", dict, "an object"), f"{where}: contract"),
                graphs=tuple(map(GraphFile.from_json, fields.objects("graphs"))),
                files={name: _file(files.object(name)) for name in files.values},
                source=SourceInfo.from_json(fields.object("source")),
                model=_model(fields),
                precision=Precision.from_json(fields.object("precision")),
                tokenizer=fields.text_or_none("tokenizer"),
                special_tokens=fields.mapping("special_tokens", str, "an object of texts"),
                generation=GenerationDefaults.from_json(fields.values["generation"], f"{where}: generation"),
                input_meaning=fields.text("input_meaning"),
                versions=fields.mapping("versions", str, "an object of texts"),
                verification=fields.mapping("verification", object, "an object"),
                created=fields.text("created"),
            )
        except (ContractError, ConfigError) as error:
            raise BundleError(error.message, hint=error.hint or MANIFEST_FORMAT.hint) from error
        if not any(graph.min_time == 1 for graph in manifest.graphs):
            raise fields.wrong("graphs", "at least one graph that takes one time step")
        return manifest


def _file(fields: Fields) -> tuple[str, int]:
    """SHA-256 and size of a file."""
    fields.only("sha256", "bytes")
    return fields.text("sha256"), fields.integer("bytes")


def _model(fields: Fields) -> DecoderConfig | None:
    """The decoder's configuration, or ``None``."""
    if fields.values.get("model", ...) is None:
        return None
    return DecoderConfig.from_json(fields.take("model", dict, "an object or null"), f"{fields.where}: model")
