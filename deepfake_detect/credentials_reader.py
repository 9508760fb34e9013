"""Read the content credentials (C2PA) of the file on standard input, and print what they say.

provenance.py runs this page by its path in a process of its own, with limits of time and memory:
the library is native code, and the file may be made to harm it. So nothing but c2pa-python and the
standard library is imported here. Nothing is fetched from a network.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

MOST_MEMORY = 2 * 2**30  # bytes of address space
LONGEST_TEXT = 120  # characters kept of a name that the file gives

# The first bytes of the kinds of file that can hold content credentials: offset, bytes, media type.
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
    """Print the credentials of standard input as JSON; the argument is a trust list."""
    limit_memory()
    trust_list = Path(sys.argv[1]).read_text() if len(sys.argv) > 1 else None
    print(json.dumps(read_credentials(trust_list)))


def limit_memory() -> None:
    """Limit the memory of this process, where the system can, and have it leave no core file."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def read_credentials(trust_list: str | None) -> dict:
    """Read the credentials of standard input, a file that can be sought.

    Args:
        trust_list: certificates of trusted signers, PEM; None does not check the signer

    Returns:
        "status" and, depending on it, the other fields of provenance.Credentials.
    """
    import c2pa

    sys.stdin.buffer.seek(0)
    head = sys.stdin.buffer.read(16)
    sys.stdin.buffer.seek(0)
    kind = next((kind for at, mark, kind in KINDS if head[at:].startswith(mark)), None)
    if kind is None:
        return {"status": "not checked", "reason": "this kind of file does not hold them"}
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
    """Say who made the file with what and when, and whether an AI did, by the active manifest."""
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
    """Say whether an AI made the file or parts of it, by its manifest and those it was made from.

    What a file was opened from (parentOf) counts as the file; what was put into it as a part.
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
    """Yield what was done to the file, one entry of the actions assertions after another."""
    for assertion in manifest.get("assertions") or []:
        if str(assertion.get("label")).startswith("c2pa.actions"):
            data = assertion.get("data")
            actions = data.get("actions") if isinstance(data, dict) else None
            yield from (action for action in actions or [] if isinstance(action, dict))


def name_tool(tool: object) -> str | None:
    """Name a tool and its version, which manifests give as a table or as one text."""
    if isinstance(tool, dict):
        return shorten(" ".join(str(tool[key]) for key in ("name", "version") if tool.get(key)))
    return shorten(tool)


def name_failure(store: dict) -> str | None:
    """Give the C2PA code of the first check that failed, without that of an unknown signer."""
    codes = [str(each.get("code")) for each in store.get("validation_status") or []]
    return next((shorten(code) for code in codes if code != "signingCredential.untrusted"), None)


def shorten(text: object) -> str | None:
    """Keep a text of the file on one line, printable and short; None where there is none."""
    words = " ".join(str(text or "").split())
    words = "".join(letter for letter in words if letter.isprintable())
    return words[:LONGEST_TEXT] or None


if __name__ == "__main__":
    main()
