"""Checks of values that look like personal information: checksums, lengths, and what else they may be."""

import ipaddress
import re

__all__ = [
    "is_distinct_ipv4",
    "is_ean13",
    "is_iban",
    "is_international_phone",
    "is_ip",
    "is_luhn",
    "is_name",
    "is_nhs_number",
    "is_phone",
    "is_record_number",
]


def _digits(text: str) -> str:
    return re.sub(r"\D", "", text)


def is_phone(text: str) -> bool:
    """Return True for 7 to 15 digits (E.164) that are no two years and no decimal numbers."""
    years = re.fullmatch(r"(?:19|20)\d\d[-/ ](?:19|20)\d\d", text.strip())
    decimals = re.search(r"(?<!\d)\d{1,2}\.\d{1,2}(?!\d)(?!\.)", text) and text.count(".") == 1
    return 7 <= len(_digits(text)) <= 15 and not years and not decimals


def is_international_phone(text: str) -> bool:
    """Return True for `+` and 9 to 15 digits (E.164)."""
    return 9 <= len(_digits(text)) <= 15 and text[1] != "0"


def is_nhs_number(text: str) -> bool:
    """Check the NHS number's last digit, modulo 11 (NHS Data Dictionary)."""
    digits = [int(digit) for digit in _digits(text)]
    check = 11 - sum(digit * weight for digit, weight in zip(digits, range(10, 1, -1), strict=False)) % 11
    return len(digits) == 10 and check != 10 and check % 11 == digits[9]


def is_ean13(text: str) -> bool:
    """Check the last of 13 digits, as in the Swiss AHV number (EAN-13)."""
    digits = [int(digit) for digit in _digits(text)]
    return len(digits) == 13 and sum(d * (1 + 2 * (i % 2)) for i, d in enumerate(digits)) % 10 == 0


def is_luhn(text: str) -> bool:
    """Check the last digit of a payment card's number (ISO/IEC 7812-1)."""
    doubled = [int(digit) * (1 + i % 2) for i, digit in enumerate(reversed(_digits(text)))]
    return 13 <= len(doubled) <= 19 and sum(d - 9 * (d > 9) for d in doubled) % 10 == 0


# Lengths of IBANs by country (SWIFT's IBAN registry), for the countries with the most accounts.
_IBAN_LENGTHS = {
    **dict.fromkeys(("NO",), 15),
    **dict.fromkeys(("BE",), 16),
    **dict.fromkeys(("DK", "FI", "NL"), 18),
    **dict.fromkeys(("SI", "MK"), 19),
    **dict.fromkeys(("AT", "EE", "LT", "LU", "KZ", "XK"), 20),
    **dict.fromkeys(("CH", "HR", "LV", "LI"), 21),
    **dict.fromkeys(("BG", "DE", "GB", "IE", "BH", "GE", "ME", "RS", "VA"), 22),
    **dict.fromkeys(("AE", "GI", "IL"), 23),
    **dict.fromkeys(("CZ", "ES", "SE", "SK", "SA", "RO", "PK", "TN", "MD", "AD"), 24),
    **dict.fromkeys(("PT",), 25),
    **dict.fromkeys(("IS", "TR"), 26),
    **dict.fromkeys(("FR", "GR", "IT", "MC", "SM"), 27),
    **dict.fromkeys(("AL", "AZ", "CY", "DO", "GT", "HU", "LB", "PL"), 28),
    **dict.fromkeys(("BR", "UA", "QA", "PS"), 29),
    **dict.fromkeys(("JO", "KW", "MU"), 30),
    **dict.fromkeys(("MT", "SC"), 31),
}


def is_iban(text: str) -> bool:
    """Check an IBAN's length and its remainder modulo 97 (ISO 13616)."""
    plain = text.replace(" ", "").replace("-", "").upper()
    if len(plain) != _IBAN_LENGTHS.get(plain[:2]):
        return False
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def is_ip(text: str) -> bool:
    """Return True for an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_distinct_ipv4(text: str) -> bool:
    """Return True for an IPv4 address that is no enzyme class, section or version: two octets above 99."""
    return is_ip(text) and text[0] != "0" and sum(int(octet) > 99 for octet in text.split(".")) >= 2


# Capitalised words that follow "Patient:" without being a name.
_NOT_NAMES = frozenset(
    """
    Male Female Man Woman Boy Girl Adult Child Infant Newborn Elderly Case Control Group Study Data Care
    Safety History Information Health Medical Clinical Primary Final Diagnosis Symptoms Medication
    Specialty Objective The This That These All No Not Yes None Unknown Age Aged Sex Gender Mean Median
    Total Number New Old Young Type Stage Grade Phase Left Right Hospital Clinic University Department
    Center Centre Doctor Physician Nurse Surgeon Patient Patients Outcome Outcomes Reported Education
    Advocate Advocacy Perspective Preferences Survey Questionnaire Satisfaction Experience Engagement
    Centered Chronic Acute Severe Mild Diabetes Cancer Heart Kidney Liver Lung Brain Breast Caucasian
    African American Asian European Hispanic White Black And Or Of In With For A An Is Was Has Had
    """.split()  # noqa: SIM905
)


def is_name(text: str) -> bool:
    """Return True if no word is one that follows `Patient:` in case reports and titles."""
    words = (word.strip(".,").title() for word in text.split())
    return not any(len(word) > 1 and word in _NOT_NAMES for word in words)


def is_record_number(text: str) -> bool:
    """Return True for 5 to 12 digits that are no period of years."""
    years = re.fullmatch(r"(?:19|20)\d\d-(?:(?:19|20)?\d\d)", text)
    return 5 <= len(_digits(text)) <= 12 and not years
