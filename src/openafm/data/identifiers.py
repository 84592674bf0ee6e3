"""Numbers that stand for a person or an account: cards, IBANs, social security numbers, national identity numbers.

Part of `pii`. Check digits are verified: cards and IBANs here, national numbers by python-stdnum, which knows the rules
of each country's register. Where a checksum lets one random number in ten pass, or there is none, a word beside the
number has to say what it is; a form that nothing else has (`123.456.789-09`) speaks for itself.
"""

import re
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from openafm.data.spans import Places, in_digit_runs, near

# --- cards ---------------------------------------------------------------------------------------------------------
_CARD = re.compile(
    r"(?<![\w.,+$-])(?:\d{13,19}|\d{4}([ \u00a0-])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|\d{4}([ \u00a0-])\d{6}\2\d{4,5})"
    r"(?![\w]|[.,-]\d)"
)
_CARD_WORDS = re.compile(
    r"\b(?:cards?|visa|master ?card|amex|american express|discover|credit|debit|paid|pay(?:ment)?|charged?|cvv|cvc"
    r"|exp(?:iry|ires|\.)?|valid thru|karte|carte|tarjeta|carta)\b",
    re.I,
)
_NOT_CARD = re.compile(
    r"\b(?:isbn|ean|gtin|imei|iccid|doi|serial|tracking|order|id|uid|guid|timestamp|nonce|seed|hash|snowflake|invoice"
    r"|parcel|shipment)\b\W{0,3}(?:n(?:umber|o\.?)\W{0,2})?(?:is )?$",
    re.I,
)


def luhn(digits: str) -> bool:
    """Check ISO/IEC 7812-1's check digit: every second digit from the right doubled, digits' sum divisible by 10."""
    total = sum(int(digit) for digit in digits[::-2])
    total += sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return total % 10 == 0


def card_length_valid(digits: str) -> bool:
    """Tell whether a card network issues numbers with this prefix at this length (ISO/IEC 7812 issuer ranges)."""
    size, two, three, four = len(digits), int(digits[:2]), int(digits[:3]), int(digits[:4])
    if digits[0] == "4":
        return size in (13, 16, 19)
    if 51 <= two <= 55 or 2221 <= four <= 2720:
        return size == 16
    if two in (34, 37):
        return size == 15
    if two in (36, 38, 39) or 300 <= three <= 305:
        return 14 <= size <= 19
    return 16 <= size <= 19 and (3528 <= four <= 3589 or four == 6011 or two in (62, 65) or 644 <= three <= 649)


def cards(text: str) -> Places:
    """Payment cards: issuer's prefix and length, Luhn's digit; rare lengths in a row need a word beside them."""
    for match in in_digit_runs(_CARD, text):
        digits = re.sub(r"\D", "", match[0])
        if not luhn(digits) or not card_length_valid(digits) or len(set(digits)) <= 2 - (digits[0] == "4"):
            continue
        if match[0] == digits:
            said = near(text, match.span(), _CARD_WORDS)
            if not said and (len(digits) not in (15, 16) or _NOT_CARD.search(text[: match.start()][-32:])):
                continue
        yield match.span()


# --- IBANs ---------------------------------------------------------------------------------------------------------
IBAN_LENGTHS = {
    code: int(size)
    for size, codes in {
        15: "NO", 16: "BE BI", 18: "DK FI FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU XK", 21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST", 26: "IS TR", 27: "BF CF DJ FR GR IT MC MR SM TD", 28: "AL AZ BJ BY CI CM CY DO DZ GQ GT HN HU"
        " LB MG ML MZ NE NI PL SN SV TG", 29: "BR EG PS QA UA", 30: "JO KW MU", 31: "MT SC", 32: "LC", 33: "RU",
    }.items()
    for code in codes.split()
}  # fmt: skip
"""Characters of an IBAN by country (SWIFT IBAN registry)."""
_IBAN = re.compile(
    r"[A-Z](?<![A-Za-z0-9].)[A-Z]\d{2}(?:[ \u00a0]?[A-Z0-9]{4}){2,7}(?:[ \u00a0]?[A-Z0-9]{1,3})?(?![A-Za-z0-9])"
)


def iban_valid(iban: str) -> bool:
    """Check the country's length and that the rearranged number is 1 modulo 97 (ISO 13616, ISO 7064)."""
    if IBAN_LENGTHS.get(iban[:2]) != len(iban):
        return False
    return int("".join(str(int(character, 36)) for character in iban[4:] + iban[:4])) % 97 == 1


def ibans(text: str) -> Places:
    """International bank account numbers, in a row or in groups of four; words that follow in capitals are left."""
    for match in _IBAN.finditer(text):
        size = IBAN_LENGTHS.get(match[0][:2], 0)
        end, used = match.start(), 0
        while used < size and end < match.end():
            used += text[end] not in " \u00a0"
            end += 1
        if used == size and iban_valid(re.sub(r"\s", "", text[match.start() : end])):
            yield match.start(), end


# --- United States -------------------------------------------------------------------------------------------------
_SSN = re.compile(
    r"(?<![\w.+/-])(?:(?!000|666|9\d\d)\d{3}|9\d\d(?=[- ]?[5-9]))([- \u2010-\u2013]?)(?!00)\d\d\1(?!0000)\d{4}"
    r"(?![\w/]|[-.]\d)"
)
"""Social security numbers (areas that the SSA gives out), and taxpayer numbers of others, 9xx-(50 to 99)-xxxx."""
_SSN_WORDS = re.compile(r"\bssn\b|\bitin\b|social[ -]security|taxpayer[ -]id", re.I)


def ssns(text: str) -> Places:
    """US social security numbers: by their dashes, or by a word beside nine digits."""
    for match in in_digit_runs(_SSN, text):
        dashed = match[1] not in ("", " ") and match[0][0] != "9"
        if dashed or near(text, match.span(), _SSN_WORDS):
            yield match.span()


# --- national identity numbers -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Register:
    """How one country writes its people's numbers."""

    validator: str
    """Module of python-stdnum; empty where the form is all there is to check."""
    form: re.Pattern[str]
    words: re.Pattern[str] | None
    """What must stand beside it; None where form and checksum are enough."""


def _register(validator: str, form: str, words: str = "") -> Register:
    bounded = rf"(?<![\w.+$/-])(?:{form})(?![\w/]|[-.]\d)"
    return Register(validator, re.compile(bounded), re.compile(rf"\b(?:{words})\b", re.I) if words else None)


REGISTERS = {
    "AR CUIT": _register("ar.cuit", r"\d{2}-\d{8}-\d|\d{11}", r"cui[tl]|clave [uú]nica"),
    "AU TFN": _register("au.tfn", r"\d{3} \d{3} \d{3}|\d{8,9}", r"tfn|tax file"),
    "BE NN": _register("be.nn", r"\d{2}\.\d{2}\.\d{2}-\d{3}\.\d{2}"),
    "BE NN plain": _register("be.nn", r"\d{11}", r"rijksregister\w*|registre national|nationaal nummer|niss|insz"),
    "BR CPF": _register("br.cpf", r"\d{3}\.\d{3}\.\d{3}-\d{2}"),
    "BR CPF plain": _register("br.cpf", r"\d{9}-?\d{2}", r"cpf"),
    "CA SIN": _register("ca.sin", r"\d{3}([ -]?)\d{3}\1\d{3}", r"sin|social insurance"),
    "CH AHV": _register("ch.ssn", r"756\.\d{4}\.\d{4}\.\d{2}"),
    "CH AHV plain": _register("ch.ssn", r"756\d{10}", r"ahv\w*|avs|avn\w*"),
    "CL RUT": _register("cl.rut", r"\d{1,2}\.\d{3}\.\d{3}-[\dkK]"),
    "CL RUT plain": _register("cl.rut", r"\d{7,8}-?[\dkK]", r"ru[tn]"),
    "CN RIC": _register("cn.ric", r"[1-9]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx]"),
    "CZ RC": _register("cz.rc", r"\d{6}/?\d{3,4}", r"rodn\w+ [cč]\w+|r\. ?[cč]\.?"),
    "DE IdNr": _register(
        "de.idnr", r"[1-9]\d( ?)\d{3}\1\d{3}\1\d{3}", r"(?:steuer|tax)\W{0,2}\w*id\w*|idnr|steuer\w*|tin|tax id\w*"
    ),
    "DK CPR": _register("dk.cpr", r"\d{6}-?\d{4}", r"cpr\w*|personnummer"),
    "ES DNI": _register("es.dni", r"\d{2}\.?\d{3}\.?\d{3}[ -]?[A-HJ-NP-TV-Z]", r"dni|nif|documento|identi\w+"),
    "ES NIE": _register("es.nie", r"[XYZ][ -]?\d{7}[ -]?[A-HJ-NP-TV-Z]"),
    "FI HETU": _register("fi.hetu", r"\d{6}[-+A-FU-Y]\d{3}[0-9A-FHJ-NPR-Y]"),
    "FR NIR": _register(
        "fr.nir", r"[12][ .]\d{2}[ .](?:0[1-9]|1[0-2]|[2-9]\d)[ .]\d[\dAB][ .]\d{3}[ .]\d{3}(?:[ .]| \| ?)\d{2}"
    ),
    "FR NIR plain": _register(
        "fr.nir", r"[12]\d{4} ?\d[\dAB] ?\d{3} ?\d{3} ?\d{2}", r"nir|s[eé]curit[eé] sociale|insee|num[eé]ro de s\w+"
    ),
    "GB NHS": _register("gb.nhs", r"\d{3}([ -]?)\d{3}\1\d{4}", r"nhs"),
    "GB NINO": _register(
        "", r"(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] \d\d \d\d \d\d [A-D]"
    ),
    "GB NINO plain": _register(
        "", r"(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{6} ?[A-D]", r"nino?|national insurance"
    ),
    "GR AMKA": _register("gr.amka", r"\d{11}", r"amka|αμκα"),
    "IE PPS": _register("ie.pps", r"\d{7}[A-W][A-IW]?", r"pps[n#]?|personal public service"),
    "IL ID": _register("il.idnr", r"\d{8}-?\d", r"teudat|israeli id\w*|mispar zehut"),
    "IN Aadhaar": _register("in_.aadhaar", r"[2-9]\d{3}([ -]?)\d{4}\1\d{4}", r"aadha?ar|uidai|uid"),
    "IT CF": _register("it.codicefiscale", r"[A-Z]{6}\d{2}[A-EHLMPR-T]\d{2}[A-Z]\d{3}[A-Z]"),
    "KR RRN": _register("kr.rrn", r"\d{6}-\d{7}"),
    "MX CURP": _register("mx.curp", r"[A-Z][AEIOUX][A-Z]{2}\d{6}[HMX][A-Z]{2}[B-DF-HJ-NP-TV-Z]{3}[A-Z\d]\d"),
    "NL BSN": _register(
        "nl.bsn", r"\d{9}|\d{3}[. ]\d{3}[. ]\d{3}|\d{4}\.\d{2}\.\d{3}", r"bsn|burger\s?service\w*|sofi\w*"
    ),
    "NO FNR": _register("no.fodselsnummer", r"\d{6} ?\d{5}", r"f[oø]dsels\w*|personnummer|fnr|national id\w*"),
    "PL PESEL": _register("pl.pesel", r"\d{11}", r"pesel"),
    "PT NIF": _register("pt.nif", r"\d{3} ?\d{3} ?\d{3}", r"nif|contribuinte"),
    "RO CNP": _register("ro.cnp", r"[1-9]\d{12}", r"cnp|cod numeric"),
    "SE PNR": _register("se.personnummer", r"(?:19|20)?\d{6}[-+]?\d{4}", r"person\w*nummer|pnr|personnr"),
    "TH PIN": _register("th.pin", r"[1-8]-\d{4}-\d{5}-\d{2}-\d"),
    "TR TCKN": _register("tr.tckimlik", r"[1-9]\d{10}", r"t\.?c\.? ?(?:kimlik|no|k)\w*|kimlik\w*|tckn"),
    "ZA ID": _register(
        "za.idnr", r"\d{6} ?\d{4} ?\d{3}", r"(?:south african|sa|rsa|national|identity) ?id\w*|id number"
    ),
}  # fmt: skip
"""By country and name of the number."""
_RUN = re.compile(r"[\dA-Z](?<![A-Za-z0-9].)[\dA-Z .+/|\u00a0-]{6,}[\dA-Zkx]?")
_DIGITS = re.compile(r"\d")


@cache
def _validator(name: str) -> Any:
    return import_module(f"stdnum.{name}")


def national_id_valid(register: Register, number: str) -> bool:
    """Tell whether a number has its register's form and check digits."""
    plain = number.replace("\u00a0", " ")
    digits = _DIGITS.findall(plain)
    if len(set(digits)) < 3 or not register.form.fullmatch(plain):
        return False
    return not register.validator or bool(_validator(register.validator).is_valid(plain.replace("|", "")))


def national_ids(text: str) -> Places:
    """Identity and tax numbers of the countries in `REGISTERS`."""
    for run in _RUN.finditer(text):
        if len(_DIGITS.findall(run[0])) < 6:
            continue
        for register in REGISTERS.values():
            for match in register.form.finditer(text, run.start(), min(len(text), run.end() + 2)):
                said = register.words is None or near(text, match.span(), register.words)
                if said and national_id_valid(register, match[0]):
                    yield match.span()
