"""Policies: the grammar, and that nothing is trusted which the file does not name."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muniment.encoding import b64
from muniment.errors import BadSignature, FormatError, PolicyNotMet
from muniment.note import SigningKey, key_id_of
from muniment.policy import Group, LogKey, OtherLogKey, Policy, Witness
from tests.unit.samples import KEY, ORIGIN, POLICY, event_log, policy_of, raw_log


def vkey(name: str, number: int, kind: int = 4, length: int = 32) -> str:
    """A well-formed vkey of a witness; `number` chooses the key."""
    public = bytes([number]) * length
    return f"{name}+{key_id_of(name, kind, public).hex()}+{b64(bytes([kind]) + public)}"


def log_vkey(number: int, name: str = "log.example/n") -> str:
    """A vkey of a log."""
    return str(SigningKey(name, bytes([number]) * 32).vkey)


LOG = f"log {KEY.vkey}"
W1, W2, W3 = (vkey(f"w{number}.example", number) for number in (1, 2, 3))
THREE = f"witness a {W1}\nwitness b {W2} https://b.example/\nwitness c {W3}\n"

GOOD = {
    "quorum none": Policy(()),
    f"{LOG}\nquorum none\n": Policy((LogKey(KEY.vkey),)),
    f"{LOG} https://log.example/\nquorum none": Policy((LogKey(KEY.vkey, "https://log.example/"),)),
    f"\n# a comment\n#x\n\t # indented\n \t\n  log\t {KEY.vkey}  \n\tquorum  none\t": Policy((LogKey(KEY.vkey),)),
    f"quorum none\n{LOG}\n": Policy((LogKey(KEY.vkey),)),
    f"witness a {W1}\nquorum a\n": Policy((), (Witness("a", W1),), (), "a"),
    f"witness é {W1} url\ngroup ü any é\nquorum ü\n": Policy(
        (), (Witness("é", W1, "url"),), (Group("ü", 1, ("é",)),), "ü"
    ),
    THREE + "group g all a b c\nquorum g\n": Policy(
        (),
        (Witness("a", W1), Witness("b", W2, "https://b.example/"), Witness("c", W3)),
        (Group("g", 3, ("a", "b", "c")),),
        "g",
    ),
    THREE + "group g 2 a b\ngroup h any g c\nquorum h\n": Policy(
        (),
        (Witness("a", W1), Witness("b", W2, "https://b.example/"), Witness("c", W3)),
        (Group("g", 2, ("a", "b")), Group("h", 1, ("g", "c"))),
        "h",
    ),
    f"witness a {vkey('m', 9, 6, 1312)}\nquorum none\n": Policy((), (Witness("a", vkey("m", 9, 6, 1312)),)),
    f"witness a {vkey('e', 9, 7)}\nquorum none\n": Policy((), (Witness("a", vkey("e", 9, 7)),)),
    f"log {W1} https://log.example/\n{LOG}\nquorum none\n": Policy(
        (LogKey(KEY.vkey),), others=(OtherLogKey(W1, "https://log.example/"),)
    ),
    f"log {vkey(ORIGIN, 9, 6, 1312)}\nlog x+00000000+/wA=\nquorum none\n": Policy(
        (), others=(OtherLogKey(vkey(ORIGIN, 9, 6, 1312)), OtherLogKey("x+00000000+/wA="))
    ),
    "# caf\udce9 \x80 \x85 \u2028log x\nquorum none\n": Policy(()),
    f"witness w\udcff {W1} http://\udc80/\nquorum w\udcff\n": Policy(
        (), (Witness("w\udcff", W1, "http://\udc80/"),), (), "w\udcff"
    ),
    "witness log " + W1 + "\nwitness quorum " + W2 + "\nquorum log\n": Policy(
        (), (Witness("log", W1), Witness("quorum", W2)), (), "log"
    ),
}
BAD = {
    "": "one quorum line, not 0",
    LOG: "one quorum line, not 0",
    "quorum none\nquorum none": "one quorum line, not 2",
    f"witness a {W1}\nquorum a\nquorum none": "one quorum line, not 2",
    "quorum": "takes 1 to 1 words",
    "quorum none none": "takes 1 to 1 words",
    "quorum none # fine": "takes 1 to 1 words",
    "quorum a": "line 1: .*no earlier line",
    f"quorum a\nwitness a {W1}": "line 1: .*no earlier line",
    f"quorum None\n{LOG}": "no earlier line",
    "Quorum none": "unknown keyword 'Quorum'",
    "quorum none\nlogs x": "line 2: unknown keyword",
    "log\nquorum none": "takes 1 to 2 words",
    f"{LOG} url more\nquorum none": "takes 1 to 2 words",
    f"log {KEY.vkey}x\nquorum none": "line 1",
    f"log {str(KEY.vkey)[1:]}\nquorum none": "key id",
    f"log {vkey('l', 1, 4, 31)}\nquorum none": "has 32 bytes, not 33",
    f"log {W1.replace('w1', 'w9')}\nquorum none": "key id",
    f"log {W1}\nwitness a {W1}\nquorum none": "line 2: this public key",
    "log x+0000000+/wA=\nquorum none": "key id",
    "log x+00000000+\nquorum none": "without a key",
    "log \udce9+00000000+/wA=\nquorum none": "not a vkey",
    f"{LOG}\n{LOG}\nquorum none": "line 2: this public key",
    f"log {log_vkey(1)}\nlog {log_vkey(1, 'log.example/m')}\nquorum none": "line 2: this public key",
    f"witness a {W1}\nwitness b {W1}\nquorum none": "line 2: this public key",
    f"witness a {vkey('w', 0, 2)}\nwitness b {vkey('v', 0, 4)}\nquorum none": "line 2: this public key",
    f"witness a {vkey('w', 1, 1)}\nquorum none": "type 0x01 is the key of a log",
    f"witness a {KEY.vkey}\nquorum none": "type 0x01 is the key of a log",
    f"witness a {W1}\nwitness a {W2}\nquorum none": "line 2: name 'a' is reserved or taken",
    f"witness none {W1}\nquorum none": "name 'none' is reserved",
    "witness a\nquorum none": "takes 2 to 3 words",
    f"witness a {W1} url more\nquorum none": "takes 2 to 3 words",
    f"witness a {W1[:-2]}\nquorum none": "line 1",
    f"witness a {W1.replace('w1', 'w9')}\nquorum none": "key id",
    f"witness a {vkey('w', 1, 4, 31)}\nquorum none": "has 32 bytes, not 33",
    f"witness a {vkey('w', 1, 6, 32)}\nquorum none": "has 33 bytes, not 1313",
    "witness a b\nquorum none": "not a vkey",
    f"witness a {vkey('', 1)}\nquorum none": "not a vkey",
    f"witness a {vkey('w' + chr(0xA0), 1)}\nquorum none": "not a vkey",
    "witness a b+00000000+\nquorum none": "without a key",
    THREE + "group g all\nquorum none": "takes 3 to",
    THREE + "group g\nquorum none": "takes 3 to",
    THREE + "group g all a d\nquorum none": "'d', which no earlier line defines",
    THREE + "group g all a g\nquorum none": "'g', which no earlier line defines",
    THREE + "group g all a a\nquorum none": "'a' is a member of a group already",
    THREE + "group g all a\ngroup h all a\nquorum none": "'a' is a member of a group already",
    THREE + "group a all b\nquorum none": "name 'a' is reserved or taken",
    THREE + "group none all a\nquorum none": "name 'none' is reserved",
    THREE + "group g 0 a\nquorum none": "threshold 0 is not in 1..1",
    THREE + "group g 3 a b\nquorum none": "threshold 3 is not in 1..2",
    THREE + "group g 01 a\nquorum none": "threshold is not a plain decimal",
    THREE + "group g +1 a\nquorum none": "threshold is not a plain decimal",
    THREE + "group g ALL a\nquorum none": "threshold is not a plain decimal",
    THREE + "group g none a\nquorum none": "threshold is not a plain decimal",
    "quorum none\r\n": "control character",
    "quorum none\x00": "control character",
    "quorum\x0bnone": "control character",
    "quorum none\n#\x7f": "control character",
    "quorum none\n#\ud800": "control character",
    f"quorum none\n#{chr(0xDC7F)}": "control character",
    f"quorum none\n#{chr(0xDD00)}": "control character",
    "\ufeffquorum none": "unknown keyword",
    "quorum\u00a0none": "unknown keyword",
    "quorum none\u2028quorum none": "takes 1 to 1 words|no earlier line",
}


@pytest.mark.parametrize(("text", "policy"), GOOD.items(), ids=range(len(GOOD)))
def test_good_policies(text: str, policy: Policy) -> None:
    assert Policy.parse(text) == policy
    assert Policy.parse(str(policy)) == policy
    assert bytes(Policy.parse(bytes(policy))) == bytes(policy)
    assert str(policy).endswith(f"\nquorum {policy.quorum or 'none'}\n") or not policy.logs + policy.witnesses


@pytest.mark.parametrize(("text", "problem"), BAD.items(), ids=range(len(BAD)))
def test_bad_policies(text: str, problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        Policy.parse(text)


def test_keys_are_compared_whole() -> None:
    """Two keys are one when every byte is the same, and not before; names and types do not make them two."""
    publics = [bytes([1]) + bytes(31), bytes([2]) + bytes(31), bytes(31) + bytes([1])]
    vkeys = [f"w+{key_id_of('w', 4, public).hex()}+{b64(bytes([4]) + public)}" for public in publics]
    lines = "".join(f"witness w{number} {text}\n" for number, text in enumerate(vkeys))
    assert len(Policy.parse(f"{lines}quorum none").witnesses) == 3
    cosigner = f"other+{key_id_of('other', 4, KEY.vkey.public_key).hex()}+{b64(bytes([4]) + KEY.vkey.public_key)}"
    for text in (f"{LOG}\nwitness w {cosigner}\nquorum none", f"witness w {cosigner}\n{LOG}\nquorum none"):
        with pytest.raises(FormatError, match="line 2: this public key"):
            Policy.parse(text)


def test_a_policy_holds_many_names() -> None:
    logs = "".join(f"log {log_vkey(number, f'log.example/{number}')}\n" for number in range(100))
    witnesses = "".join(f"witness w{number} {vkey('w', number)}\n" for number in range(100))
    groups = "".join(f"group g{number} any w{number}\n" for number in range(100))
    policy = Policy.parse(
        f"{logs}{witnesses}{groups}group all 67 {' '.join(f'g{n}' for n in range(100))}\nquorum all\n"
    )
    assert (len(policy.logs), len(policy.witnesses), len(policy.groups)) == (100, 100, 101)
    assert Policy.parse(str(policy)) == policy


@given(st.text("lognewitqurmpay#+ \t\n01", max_size=60))
def test_what_parses_means_the_same_when_written(text: str) -> None:
    for candidate in (text, f"{text}\nquorum none", f"{LOG}\n{THREE}{text}\nquorum none\n"):
        try:
            policy = Policy.parse(candidate)
        except FormatError:
            continue
        assert Policy.parse(str(policy)) == policy


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "policy"
    path.write_bytes(str(POLICY).encode())
    assert Policy.read(path) == Policy.read(str(path)) == POLICY
    path.write_bytes(b"# caf\xe9 \xff\n" + str(POLICY).encode())
    assert Policy.read(path) == POLICY
    path.write_bytes(b"quorum no\xffne\n")
    with pytest.raises(FormatError, match=r"policy: line 1: quorum names 'no\\udcffne'"):
        Policy.read(path)
    path.write_bytes(b"quorum\n")
    with pytest.raises(FormatError, match="policy: line 1: quorum takes"):
        Policy.read(path)
    with pytest.raises(FileNotFoundError):
        Policy.read(tmp_path / "absent")


# --- what it vouches for ------------------------------------------------------------------------------------------------

NOTE = event_log().checkpoint(5)


def test_a_listed_log_is_vouched_for() -> None:
    verified = POLICY.verify(NOTE)
    assert (verified.checkpoint.origin, verified.checkpoint.size, verified.note) == (ORIGIN, 5, NOTE)
    assert POLICY.verify(NOTE.encode()) == verified
    assert policy_of(raw_log(), event_log()).verify(NOTE) == verified


@pytest.mark.parametrize("policy", [Policy(()), policy_of(raw_log()), Policy.parse(THREE + "quorum none")])
def test_a_log_that_is_not_listed_is_not(policy: Policy) -> None:
    with pytest.raises(PolicyNotMet, match="lists no log called"):
        policy.verify(NOTE)


def test_a_key_of_an_unknown_type_vouches_for_nothing_and_stops_nothing() -> None:
    """A file is for many verifiers: the ML-DSA key of a log stands in it beside the Ed25519 key."""
    for other in (vkey(ORIGIN, 9, 6, 1312), vkey(ORIGIN, 9), vkey(ORIGIN, 9, 0xFF)):
        both = Policy.parse(f"log {other}\n{LOG}\nwitness w {vkey('w', 8, 0xFF)}\nquorum none\n")
        assert both.verify(NOTE) == POLICY.verify(NOTE)
        with pytest.raises(
            PolicyNotMet, match=f"lists no log called '{ORIGIN}' with a key of a type that this version"
        ):
            Policy.parse(f"log {other}\nquorum none\n").verify(NOTE)


def test_another_key_of_the_same_name_is_not_trusted() -> None:
    namesake = SigningKey(ORIGIN, b"n" * 32)
    with pytest.raises(BadSignature, match="not signed by a known key"):
        Policy((LogKey(namesake.vkey),)).verify(NOTE)
    both = Policy((LogKey(namesake.vkey), LogKey(KEY.vkey)))
    assert both.verify(NOTE).checkpoint.size == 5


def test_a_quorum_that_is_not_none_fails_closed() -> None:
    """Cosignatures are not evaluated yet; a policy that asks for them must not pass without."""
    for rules in ("quorum a\n", "group g any a\nquorum g\n", "group g 2 a b\ngroup h all g c\nquorum h\n"):
        with pytest.raises(PolicyNotMet, match="does not evaluate"):
            Policy.parse(f"{LOG}\n{THREE}{rules}").verify(NOTE)
    assert Policy.parse(f"{LOG}\n{THREE}group g any a\nquorum none\n").verify(NOTE).checkpoint.size == 5
    with pytest.raises(PolicyNotMet):
        Policy(POLICY.logs, quorum="").verify(NOTE)


def test_what_is_no_checkpoint_is_refused_before_any_trust() -> None:
    for text in ("", "text\n", "text\n\n— name AAAAAAAA\n", NOTE.replace("\n5\n", "\n05\n")):
        with pytest.raises(FormatError):
            POLICY.verify(text)
