"""Tests of content credentials and metadata, on files and certificates made by the tests."""

from __future__ import annotations

import datetime
import html
import http.server
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import c2pa
import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.PngImagePlugin
import pytest
from conftest import assert_stops, run_script
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from deepfake_detect import provenance
from deepfake_detect.provenance import read_provenance

MEDIA = {"jpg": "image/jpeg", "png": "image/png", "mp4": "video/mp4"}
SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"


class Signer:
    """A certificate of "Test Org" and its root certificate, to sign files with."""

    def __init__(self, ocsp: str | None = None) -> None:
        root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        authority = x509.SubjectKeyIdentifier.from_public_key(root_key.public_key())
        root = make_certificate("Root", "Root", root_key, root_key, {
            x509.BasicConstraints(True, None): True, key_usage(sign_certificates=True): True,
            authority: False,
        })  # fmt: skip
        extensions = {
            x509.BasicConstraints(False, None): True,
            key_usage(sign_certificates=False): True,
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]): False,
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority): False,
        }
        if ocsp:
            access = x509.AccessDescription(
                AuthorityInformationAccessOID.OCSP, x509.UniformResourceIdentifier(ocsp)
            )
            extensions[x509.AuthorityInformationAccess([access])] = False
        leaf = make_certificate("Leaf", "Root", key, root_key, extensions)
        self.root = root.public_bytes(serialization.Encoding.PEM)
        self.chain = leaf.public_bytes(serialization.Encoding.PEM) + self.root
        self.key = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def sign(
        self,
        media: bytes,
        kind: str,
        *,
        source: str = "digitalCapture",
        tool: str = "TestCam",
        remote: str | None = None,
        parent: tuple[bytes, str] | None = None,
    ) -> bytes:
        """Sign a file; remote is the address of its manifest, parent its source file."""
        action = {"action": "c2pa.created", "when": "2026-01-02T03:04:05Z"}
        action["digitalSourceType"] = SOURCE_TYPES + source
        if parent and parent[1] == "parentOf":
            action = {"action": "c2pa.opened", "parameters": {"ingredientIds": ["xmp:iid:1"]}}
        builder = c2pa.Builder({
            "claim_generator_info": [{"name": tool, "version": "1"}],
            "assertions": [{"label": "c2pa.actions", "data": {"actions": [action]}}],
        })  # fmt: skip
        if parent:
            content, relation = parent
            described = {"relationship": relation, "instance_id": "xmp:iid:1"}
            builder.add_ingredient(described, MEDIA[kind], io.BytesIO(content))
        if remote:
            builder.set_no_embed()
            builder.set_remote_url(remote)
        info = c2pa.C2paSignerInfo(b"es256", self.chain, self.key, None)
        signed = io.BytesIO()
        builder.sign(c2pa.Signer.from_info(info), MEDIA[kind], io.BytesIO(media), signed)
        return signed.getvalue()


def make_certificate(
    name: str,
    issuer: str,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    extensions: dict[x509.ExtensionType, bool],
) -> x509.Certificate:
    def make_name(common: str) -> x509.Name:
        organization = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test Org")
        return x509.Name([organization, x509.NameAttribute(NameOID.COMMON_NAME, common)])

    today = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(make_name(name))
        .issuer_name(make_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
    )
    for extension, critical in extensions.items():
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer_key, hashes.SHA256())


def key_usage(sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer()


@pytest.fixture(scope="module")
def plain() -> dict[str, bytes]:
    return {kind: make_media(kind) for kind in MEDIA}


def make_media(kind: str, **metadata: str) -> bytes:
    """Make a small picture, or a video of one second with this metadata."""
    frame = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    media = io.BytesIO()
    if kind != "mp4":
        PIL.Image.fromarray(frame).save(media, {"jpg": "JPEG", "png": "PNG"}[kind])
        return media.getvalue()
    with av.open(media, "w", format="mp4", options={"movflags": "use_metadata_tags"}) as video:
        stream = video.add_stream("mpeg4", rate=10, width=128, height=96)
        video.metadata.update(metadata)
        for _ in range(10):
            video.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        video.mux(stream.encode())
    return media.getvalue()


def change(signed: bytes) -> bytes:
    """Change the content of a signed file: the sample data of an MP4, else the last bytes."""
    at = signed.index(b"mdat") + 40 if b"ftyp" in signed[:12] else len(signed) - 200
    return signed[:at] + bytes([signed[at] ^ 1]) + signed[at + 1 :]


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """Run a server that answers with errors, and list its requests."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_GET = do_POST = answer

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http_server.server_port}/", asked
        http_server.shutdown()


@pytest.mark.parametrize("kind", MEDIA)
def test_states(kind: str, signer: Signer, plain: dict[str, bytes], tmp_path: Path) -> None:
    signed = signer.sign(plain[kind], kind, source="trainedAlgorithmicMedia")
    (tmp_path / f"a b.{kind}").write_bytes(signed)
    found = read_provenance(tmp_path / f"a b.{kind}")
    credentials = found.credentials
    assert (credentials.status, credentials.trusted) == ("valid", None)
    assert (credentials.made_by, credentials.made_with) == ("Test Org", "TestCam 1")
    assert (credentials.date, credentials.generated) == ("2026-01-02", "whole")
    assert found.headline()
    assert read_provenance(signed) == found  # bytes and path give the same result

    changed = read_provenance(change(signed))
    assert changed.credentials.status == "mismatch"
    assert changed.headline() is None  # do not repeat statements with an invalid signature
    assert read_provenance(plain[kind]).credentials.status == "none"
    assert read_provenance(signed[: len(signed) // 2]).credentials.status != "valid"


@pytest.mark.parametrize(
    ("source", "generated"),
    [("digitalCapture", None), ("compositeWithTrainedAlgorithmicMedia", "partly")],
)
def test_source_types(
    source: str, generated: str | None, signer: Signer, plain: dict[str, bytes]
) -> None:
    found = read_provenance(signer.sign(plain["jpg"], "jpg", source=source))
    assert (found.credentials.status, found.credentials.generated) == ("valid", generated)


@pytest.mark.parametrize(
    ("relation", "generated"), [("parentOf", "whole"), ("componentOf", "partly")]
)
def test_made_from_generated(
    relation: str, generated: str, signer: Signer, plain: dict[str, bytes]
) -> None:
    parent = signer.sign(plain["jpg"], "jpg", source="trainedAlgorithmicMedia")
    found = read_provenance(signer.sign(plain["jpg"], "jpg", parent=(parent, relation)))
    assert (found.credentials.status, found.credentials.generated) == ("valid", generated)


def test_trust_list(signer: Signer, plain: dict[str, bytes], tmp_path: Path) -> None:
    signed = signer.sign(plain["png"], "png")
    for name, content, trusted in (
        ("ours.pem", signer.root, True),
        ("others.pem", Signer().root, False),
    ):
        (tmp_path / name).write_bytes(content)
        found = read_provenance(signed, trust_list=tmp_path / name)
        assert (found.credentials.status, found.credentials.trusted) == ("valid", trusted)
        assert found.to_dict()["credentials"]["trusted"] is trusted
    (tmp_path / "list.pem").write_text("no certificate")
    with pytest.raises(ValueError, match=r"list\.pem.*--trust-list"):
        read_provenance(signed, trust_list=tmp_path / "list.pem")


def test_nothing_is_fetched(
    server: tuple[str, list[str]], plain: dict[str, bytes], tmp_path: Path
) -> None:
    address, asked = server
    signer = Signer(ocsp=address + "ocsp")
    remote = signer.sign(plain["jpg"], "jpg", remote=address + "manifest")
    found = read_provenance(remote)
    assert (found.credentials.status, found.credentials.address) == ("remote", address + "manifest")
    assert read_provenance(signer.sign(plain["jpg"], "jpg")).credentials.status == "valid"
    assert asked == []

    # Check the server: by default, the library does request the manifest.
    (tmp_path / "remote.jpg").write_bytes(remote)
    code = "import c2pa, sys; c2pa.Reader('image/jpeg', open(sys.argv[1], 'rb'))"
    command = [sys.executable, "-c", code, str(tmp_path / "remote.jpg")]
    subprocess.run(command, stderr=subprocess.DEVNULL, check=False)
    assert asked == ["/manifest"]


@pytest.mark.parametrize(
    "code",
    [
        "import time; time.sleep(900)",
        "import os; os.abort()",
        "print('junk')",
        """print('{"unknown": 1}')""",
        "import sys; sys.exit(1)",
    ],
)
def test_failing_reader_is_reported(
    code: str, plain: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the reader hangs, crashes or prints other text, only the credentials are missing."""
    (tmp_path / "reader.py").write_text(code)
    monkeypatch.setattr(provenance, "READER", tmp_path / "reader.py")
    start = time.monotonic()
    found = read_provenance(plain["mp4"], seconds=1)
    assert time.monotonic() - start < 600
    assert found.credentials.status == "not checked"
    assert found.facts["encoder"]


def test_without_extra(plain: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "c2pa", None)  # simulates a missing package
    found = read_provenance(plain["mp4"])
    assert found.credentials.status == "not checked"
    assert "provenance" in found.sentence()
    assert found.facts["streams"] == "1 video"


@pytest.mark.parametrize("kind", ["jpg", "mp4"])
def test_huge(kind: str, plain: dict[str, bytes], tmp_path: Path) -> None:
    """A file of 3 GB can be read, although the reader may not use as much memory."""
    size = 3 * 2**30
    with (tmp_path / "huge").open("wb") as file:
        file.write(plain[kind])
        if kind == "mp4":  # a box with a 64-bit size
            file.write((1).to_bytes(4) + b"mdat" + (size - len(plain[kind])).to_bytes(8))
        file.truncate(size)
    found = read_provenance(tmp_path / "huge", seconds=2)
    assert found.credentials.status in ("none", "not checked")


def test_odd_sources(tmp_path: Path) -> None:
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile /etc/passwd\n")
    for source in (tmp_path, tmp_path / "missing.mp4", tmp_path / "list.mp4", b"", b"junk" * 99):
        found = read_provenance(source)
        assert (found.credentials.status, found.facts) == ("not checked", {})


@pytest.mark.long
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_damaged(data: st.DataObject) -> None:
    """A change after the manifest is always detected; any change is handled without an error."""
    signed = DAMAGED.setdefault("file", Signer().sign(make_media("jpg"), "jpg"))
    at = data.draw(st.integers(0, len(signed) - 1))
    flip = data.draw(st.integers(1, 255))
    found = read_provenance(signed[:at] + bytes([signed[at] ^ flip]) + signed[at + 1 :])
    if at >= len(signed) - 4000:
        assert found.credentials.status == "mismatch"


DAMAGED: dict[str, bytes] = {}  # one signed file for all examples


def test_hostile_text(signer: Signer, plain: dict[str, bytes]) -> None:
    signed = signer.sign(plain["jpg"], "jpg", tool="a\n\x1b[31m\u202eb" + "x" * 5000)
    sentence = read_provenance(signed).sentence()
    assert sentence.isprintable()
    assert len(sentence) < 600


def make_picture_with_exif() -> bytes:
    picture, media = PIL.Image.new("RGB", (64, 64)), io.BytesIO()
    exif = picture.getexif()
    exif[PIL.ExifTags.Base.Software] = "Editor 5"
    exif[PIL.ExifTags.Base.DateTime] = "2024:05:06 07:08:09"
    exif[PIL.ExifTags.Base.Artist] = "Ann Smith"
    exif[PIL.ExifTags.IFD.GPSInfo] = {1: "S", 2: (12.0, 30.0, 0.0), 3: "E", 4: (8.0, 15.0, 0.0)}
    picture.save(media, "JPEG", exif=exif)
    return media.getvalue()


def make_video_with_tags() -> bytes:
    return make_media(
        "mp4",
        creation_time="2024-05-06T07:08:09Z",
        software="Editor 5",
        location="-12.5+008.25/",
        artist="Ann Smith",
        comment="at the house of Ann",
    )


def make_photo_of_a_phone() -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    media = io.BytesIO()
    with PIL.Image.open(io.BytesIO(make_picture_with_exif())) as picture:
        pillow_heif.from_pillow(picture).save(media, exif=picture.getexif().tobytes())
    return media.getvalue()


@pytest.mark.parametrize(
    "make", [make_picture_with_exif, make_photo_of_a_phone, make_video_with_tags]
)
def test_facts(make: Callable[[], bytes]) -> None:
    media = make()
    found = read_provenance(media)
    assert found.facts["software"] == "Editor 5"
    assert "2024" in found.facts.get("changed", "") + found.facts.get("created", "")
    assert not {"location", "artist"} & set(found.facts)
    assert "12.5" not in found.sentence()
    assert "Ann" not in found.sentence()
    shown = read_provenance(media, show_location=True).facts
    assert "-12.5" in shown["location"]
    assert shown["artist"] == "Ann Smith"


def test_ai_labels_without_signature() -> None:
    """An unsigned AI label is listed in the facts, but does not give a headline."""
    xmp = b'<x xmp:CreatorTool="Tool 1" Iptc4xmpExt:DigitalSourceType="%strainedAlgorithmicMedia"/>'
    texts = PIL.PngImagePlugin.PngInfo()
    texts.add_text("parameters", "a face, Steps: 20")
    exif = PIL.Image.Exif()
    comment = b"UNICODE\0" + "a face, Steps: 20, Sampler: Euler".encode("utf-16-be")
    exif.get_ifd(PIL.ExifTags.IFD.Exif)[PIL.ExifTags.Base.UserComment] = comment
    for kind, options in (
        ("JPEG", {"exif": exif}),
        ("JPEG", {"xmp": xmp % SOURCE_TYPES.encode()}),
        ("PNG", {"pnginfo": texts}),
    ):
        media = io.BytesIO()
        PIL.Image.new("RGB", (64, 64)).save(media, kind, **options)
        found = read_provenance(media.getvalue())
        assert found.facts["AI label"]
        assert found.headline() is None


def test_06_shows_provenance_in_all_outputs(
    signer: Signer, plain: dict[str, bytes], tmp_path: Path
) -> None:
    signed = signer.sign(plain["jpg"], "jpg", source="trainedAlgorithmicMedia")
    (tmp_path / "signed.jpg").write_bytes(signed)
    (tmp_path / "place.jpg").write_bytes(make_picture_with_exif())
    (tmp_path / "list.pem").write_bytes(signer.root)
    files = ["signed.jpg", "place.jpg", "--json"]
    run = run_script("06-detect-deepfake.py", *files, "--trust-list", "list.pem", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    said = {Path(each["file"]).name: each["provenance"] for each in json.loads(run.stdout)}
    assert said["signed.jpg"]["credentials"]["trusted"] is True
    assert said["signed.jpg"]["headline"]
    for provenance_, name in ((said["signed.jpg"], "signed"), (said["place.jpg"], "place")):
        assert provenance_["sentence"] in run.stderr
        report = html.unescape((tmp_path / "detections" / f"{name}.html").read_text())
        assert provenance_["sentence"] in report
    report = (tmp_path / "detections/signed.html").read_text()
    # The headline is above the verdict.
    assert report.index(said["signed.jpg"]["headline"]) < report.index('class="words"')
    written = [path for path in (tmp_path / "detections").iterdir() if path.is_file()]
    assert not [path for path in written if b"Ann Smith" in path.read_bytes()]


def test_06_refuses_a_list_without_certificates(plain: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(plain["jpg"])
    (tmp_path / "list.pem").write_text("junk")
    for name in ("list.pem", "missing.pem"):
        run = run_script("06-detect-deepfake.py", "a.jpg", "--trust-list", name, cwd=tmp_path)
        assert_stops(run, name, "--trust-list")
