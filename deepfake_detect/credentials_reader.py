"""Read the content credentials (C2PA) of the file on standard input, and print them as JSON.

provenance.py runs this file in a separate process with limits of time and memory, because the
library is native code and the input may be malicious. This file therefore imports only c2pa-python
and the standard library. It never connects to a network.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

MOST_MEMORY = 2 * 2**30  # bytes of address space
LONGEST_TEXT = 120  # characters kept of a text from the file

# Signatures of the file types that can contain content credentials: offset, bytes, media type.
KINDS = (
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"\x89PNG", "image/png"),
    (0, b"GIF8", "image/gif"),
    (8, b"WEBP", "image/webp"),
    (8, b"AVI ", "video/avi"),
    (4, b"ftypavi", "image/avif"),
    (4, b"ftyphei", "image/heic"),
    (4, b"ftypmif1", "image/heif"),
    (4, b"ftyp", "video/mp4"),
    (0, b"II*\0", "image/tiff"),
    (0, b"MM\0*", "image/tiff"),
)
# IPTC's digital source types, https://cv.iptc.org/newscodes/digitalsourcetype/
GENERATED = "trainedAlgorithmicMedia"
PARTLY_GENERATED = "compositeWithTrainedAlgorithmicMedia"


def main() -> None:
    """Print the credentials of standard input as JSON; the argument is the path of a trust list."""
    limit_memory()
    trust_list = Path(sys.argv[1]).read_text() if len(sys.argv) > 1 else None
    print(json.dumps(read_credentials(trust_list)))


def limit_memory() -> None:
    """Limit the memory of this process and disable core files; do nothing on Windows."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def read_credentials(trust_list: str | None) -> dict:
    """Read the credentials of standard input, which must be seekable.

    Args:
        trust_list: certificates of trusted signers, PEM; None: do not check the signer

    Returns:
        "status" and, depending on it, the other fields of provenance.Credentials.
    """
    import c2pa

    sys.stdin.buffer.seek(0)
    head = sys.stdin.buffer.read(16)
    sys.stdin.buffer.seek(0)
    kind = next((kind for at, mark, kind in KINDS if head[at:].startswith(mark)), None)
    if kind is None:
        return {"status": "not checked", "reason": "this type of file cannot contain them"}
    settings: dict[str, dict[str, bool | str]] = {
        "verify": {
            "remote_manifest_fetch": False,
            "ocsp_fetch": False,
            "verify_trust": trust_list is not None,
        }
    }
    if trust_list is not None:
        settings["trust"] = {"trust_anchors": trust_list}
    try:
        context = c2pa.Context(c2pa.Settings.from_dict(settings))
        reader = c2pa.Reader(kind, sys.stdin.buffer, context=context)
        store, state = json.loads(reader.json()), reader.get_validation_state()
    except c2pa.C2paError.ManifestNotFound:
        return {"status": "none"}
    except c2pa.C2paError as error:
        name, _, words = str(error).partition(": ")
        if name in ("Remote", "RemoteManifest"):
            return {"status": "remote", "address": shorten(words.rpartition(" ")[2])}
        return {"status": "not checked", "reason": f"they cannot be read ({shorten(words)})"}
    if state not in ("Valid", "Trusted"):
        return {"status": "mismatch", "reason": name_failure(store)}
    trusted = None if trust_list is None else state == "Trusted"
    return {"status": "valid", "trusted": trusted, **describe_manifest(store)}


def describe_manifest(store: dict) -> dict:
    """Return the maker, tool, date and AI declaration in the active manifest."""
    manifest = store["manifests"][store["active_manifest"]]
    signature = manifest.get("signature_info") or {}
    actions = list(list_actions(manifest))
    agents = [action.get("softwareAgent") for action in actions]
    generators = manifest.get("claim_generator_info") or [manifest.get("claim_generator")]
    times = [signature.get("time"), *(action.get("when") for action in actions)]
    return {
        "made_by": shorten(signature.get("issuer") or signature.get("common_name")),
        "made_with": next(filter(None, map(name_tool, [*agents, *generators])), None),
        "date": next((time[:10] for time in times if isinstance(time, str)), None),
        "generated": find_generated(store),
    }


def find_generated(store: dict) -> str | None:
    """Return "whole", "partly" or None, from the manifests of the file and of its ingredients.

    The file that was edited (parentOf) counts as the whole; other ingredients count as parts.
    """
    found, seen, waiting = set(), set(), [(store["active_manifest"], True)]
    while waiting:
        label, whole = waiting.pop()
        manifest = store["manifests"].get(label)
        if manifest is None or label in seen:
            continue
        seen.add(label)
        for action in list_actions(manifest):
            source = str(action.get("digitalSourceType", "")).rpartition("/")[2]
            if source in (GENERATED, PARTLY_GENERATED):
                found.add("whole" if whole and source == GENERATED else "partly")
        for ingredient in manifest.get("ingredients") or []:
            faults = [str(each.get("code")) for each in ingredient.get("validation_status") or []]
            relation = ingredient.get("relationship")
            if relation == "inputTo" or any(fault.endswith("mismatch") for fault in faults):
                continue
            waiting.append((ingredient.get("active_manifest"), whole and relation == "parentOf"))
    return next((word for word in ("whole", "partly") if word in found), None)


def list_actions(manifest: dict) -> Iterator[dict]:
    """Yield the actions in a manifest: the entries of its c2pa.actions assertions."""
    for assertion in manifest.get("assertions") or []:
        if str(assertion.get("label")).startswith("c2pa.actions"):
            data = assertion.get("data")
            actions = data.get("actions") if isinstance(data, dict) else None
            yield from (action for action in actions or [] if isinstance(action, dict))


def name_tool(tool: object) -> str | None:
    """Return the name and version of a tool, which is a dict or a text in the manifest."""
    if isinstance(tool, dict):
        return shorten(" ".join(str(tool[key]) for key in ("name", "version") if tool.get(key)))
    return shorten(tool)


def name_failure(store: dict) -> str | None:
    """Return the C2PA code of the first failed check, ignoring an unknown signer."""
    codes = [str(each.get("code")) for each in store.get("validation_status") or []]
    return next((shorten(code) for code in codes if code != "signingCredential.untrusted"), None)


def shorten(text: object) -> str | None:
    """Return a text from the file as one short line of printable characters; None if empty."""
    words = " ".join(str(text or "").split())
    words = "".join(letter for letter in words if letter.isprintable())
    return words[:LONGEST_TEXT] or None


if __name__ == "__main__":
    main()
