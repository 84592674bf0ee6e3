import string
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openafm.data import identifiers, pii


def kinds(text: str) -> list[str]:
    return [span.kind for span in pii.find(text)]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to john.doe+x@mail.firm.org, please", "email"),
        ("jane [at] mail [dot] org", "email"),
        ("call (212) 736-0187 today", "phone"),
        ("fax 212-736-0187", "phone"),
        ("+44 20 7946 0958", "phone"),
        ("+12027360123", "phone"),
        ("Tel: 030 1234567", "phone"),
        ("pay with 4111 1111 1111 1111", "card"),
        ("378282246310005", "card"),
        ("IBAN: DE89 3704 0044 0532 0130 00 thanks", "iban"),
        ("GB82WEST12345698765432", "iban"),
        ("SSN 536-22-8911", "ssn"),
        ("social security number 536228911", "ssn"),
        ("login from 93.184.216.34 at noon", "ip"),
        ("DNS 8.8.8.8 answers", "ip"),
        ("2606:4700:4700::1111", "ip"),
        ("AKIAIOSFODNN7EXAMPLE", "secret"),
        ("token ghp_" + "a1B2" * 9, "secret"),
        ("password = 'h7Gk29fLmQ4z'", "secret"),
        ("postgres://app:Zk39fj20fk@db.internal/x", "secret"),
        ("-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEpAIBAAKCAQEA" * 8 + "\n-----END RSA PRIVATE KEY-----", "secret"),
    ],
)
def test_personal_data_is_found(text, kind):
    assert kinds(text) == [kind]


@pytest.mark.parametrize(
    "text",
    [
        "version 10.45.55.200 of the tool", "see section 43.7.4.1", "host 192.168.0.1, 127.0.0.1 and 10.0.0.7",
        "doi:10.1145/3292500.3330701", "ISBN 978-3-16-148410-0", "ISBN 316-148-4100", "on 2024-01-02 at 10:20:30",
        "d41d8cd98f00b204e9800998ecf8427e",
        "package@1.2.3 and image@2x.png", "git@github.com:a/b.git", "std::vector<int>",
        "x = 1234567890123456", "0.41111111111111111", "1600000000", "call 555-0123",
        "000-12-3456 666-12-3456 912-12-3456",
        "4111 1111 1111 1112", "DE89 3704 0044 0532 0130 01", "password = 'your_password_1'", "https://user:password@host/",
        "(8.947-5.371)+9.5258371", "api_key = os.environ['API_KEY_1']", "-----BEGIN PRIVATE KEY-----",
        "1-2-3 and 12/31/1999",
        "user@example.com, bob@mail.example.org, x@example.dom and root@db.example are nobody",
        "this@ImageLoaderModule.imagePipeline", "from -2147483648 to +2147483647", "below +18446744073709551616",
        "704-555-1212, and (212) 555-0187 in a film", "+1-123-555-1234", "phone +1 212 155 1234",
        "allow from 192.54.172.0/24", "on address 1.2.3.4:8000", "host 101.102.103.104",
        "'PASSWORD': 'superS3cret'", 'botToken: "123456:ABC-DEF1234ghIkl-zyx57W2v1u123ew11"',
        "a::b ::1 fe80::1", "#define X 0x4111111111111111", "pip install foo==1.22.33.44",
    ],
)  # fmt: skip
def test_look_alikes_stay(text):
    assert kinds(text) == []


def check_digit_by_search(digits: str) -> str:
    """The card number check, from its definition in words instead of the slicing in the code."""
    for last in string.digits:
        total = 0
        for position, digit in enumerate(reversed(digits + last)):
            value = int(digit) * (2 if position % 2 else 1)
            total += value - 9 if value > 9 else value
        if total % 10 == 0:
            return last
    raise AssertionError


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**14 - 1), st.integers(1, 9))
def test_cards_need_their_check_digit(number, shift):
    digits = f"4{number:014}"
    last = check_digit_by_search(digits)
    wrong = str((int(last) + shift) % 10)
    if len(set(digits + last)) > 1:
        assert kinds(f"card {digits}{last} end") == ["card"]
    assert not identifiers.luhn(digits + wrong)


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(sorted(identifiers.IBAN_LENGTHS)), st.integers(0, 10**30))
def test_ibans_need_their_checksum_and_length(country, number):
    account = str(number).zfill(31)[: identifiers.IBAN_LENGTHS[country] - 4]
    remainder = 0
    for character in account + "".join(str(ord(letter) - 55) for letter in country) + "00":
        remainder = (remainder * 10 + int(character)) % 97  # long division, digit by digit
    iban = f"{country}{98 - remainder:02}{account}"
    assert identifiers.iban_valid(iban) and not identifiers.iban_valid(iban + "0")
    wrong = iban[:-1] + str((int(iban[-1]) + 1) % 10)
    assert not identifiers.iban_valid(wrong)
    assert "iban" in kinds(" ".join(iban[at : at + 4] for at in range(0, len(iban), 4)))


FINDINGS = ["john.doe@mail.firm.org", "(212) 736-0187", "4111 1111 1111 1111", "8.8.8.8", "SSN 536-22-8911"]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.text(string.printable + "é[at]@.", max_size=30) | st.sampled_from(FINDINGS)).map(" ".join))
def test_spans_are_in_order_apart_and_redacted(text):
    spans = pii.find(text)
    assert all(a.end <= b.start for a, b in pairwise(spans))
    assert all(0 <= span.start < span.end <= len(text) and span.kind in pii.KINDS for span in spans)
    expected, at = "", 0
    for span in spans:
        expected += text[at : span.start] + f"<{span.kind.upper()}>"
        at = span.end
    assert pii.redact(text, spans) == expected + text[at:]


def test_long_unbroken_texts_come_to_an_end():
    for unit in ("1", "a@", "a.", "+1 ", "12-", "DE89 3704 ", "key=", "::1", "a at] "):
        pii.find(unit * (100_000 // len(unit)))


def test_masking_hides_the_middle():
    text = "4111111111111111"
    assert pii.masked(text, pii.Span(0, 16, "card")) == "41********11"
