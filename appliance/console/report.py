"""A visit on one printed page: who, what was taken, what the models and the radiologist said, and a code that finds it again.

What this module keeps true: it is one A4 page whatever there is (what does not fit is said by number, the most urgent stands
first); it is made on the box from what the pages show, in the same words and languages, shaped as each script needs; "advice,
not a diagnosis" stands on it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from appliance.console.lines import Whole
from appliance.console.phrases import Phrases
from appliance.console.words import N_, Words
from appliance.records import ADVICE_NOT_DIAGNOSIS, Moment
from appliance.store.patients import Visit

if TYPE_CHECKING:
    from fpdf import FPDF

_FONTS = Path("/usr/share/fonts/truetype")
LATIN_ARABIC = (_FONTS / "dejavu/DejaVuSans.ttf", _FONTS / "dejavu/DejaVuSans-Bold.ttf")
DEVANAGARI = _FONTS / "lohit-devanagari/Lohit-Devanagari.ttf"
"""Debian's ``fonts-dejavu-core`` (Latin, Arabic) and ``fonts-lohit-deva``."""

_LEFT, _TOP, _WIDTH, _BOTTOM = 15.0, 14.0, 180.0, 276.0  # mm of A4
_QR = 26.0
_TONES = {"critical": (179, 38, 30), "urgent": (138, 75, 0), "routine": (27, 107, 58)}
_GREY = (77, 95, 111)


class NoFonts(Exception):  # noqa: N818 - the condition's name
    """The fonts are not on this box; the message says which package has them."""


class Printed(NamedTuple):
    """What is printed. ``captures``: the most urgent first; ``now``: when; ``device``: ``site/name``."""

    visit: Visit
    captures: Sequence[Whole]
    now: Moment
    device: str


def code_of(printed: Printed) -> str:
    """What the square code says: the visit, and the case at the hub that is the most urgent of it."""
    case = f":case:{printed.captures[0].line.id}" if printed.captures else ""
    return f"urn:bedside:visit:{printed.visit.id}{case}"


def report(printed: Printed, words: Words) -> bytes:
    """The page as PDF; raises ``NoFonts``."""
    say = Phrases(words, printed.now.wall)
    page = _Page(words)
    _head(page, printed, words, say)
    for number, whole in enumerate(printed.captures):
        if page.y > _BOTTOM - 34:
            left = len(printed.captures) - number
            page.line(words.ngettext("and {count} more capture", "and {count} more captures", left), 10, bold=True)
            break
        _capture(page, whole, words, say)
    if not printed.captures:
        page.line(words(N_("Nothing was captured in this visit.")), 11)
    _foot(page, printed, words, say)
    return page.done()


class _Page:
    """A page that is written downwards, from the side where the language begins."""

    def __init__(self, words: Words) -> None:
        from fpdf import FPDF

        for path in (*LATIN_ARABIC, DEVANAGARI):
            if not path.exists():
                raise NoFonts(f"{path} is missing: sudo apt-get install fonts-dejavu-core fonts-lohit-deva")
        self.rtl = words.direction == "rtl"
        self.pdf: FPDF = FPDF(format="A4")
        self.pdf.set_auto_page_break(auto=False)
        self.pdf.set_margins(_LEFT, _TOP, 210 - _LEFT - _WIDTH)
        self.pdf.add_font("body", "", str(LATIN_ARABIC[0]))
        self.pdf.add_font("body", "B", str(LATIN_ARABIC[1]))
        self.pdf.add_font("deva", "", str(DEVANAGARI))
        self.pdf.add_font("deva", "B", str(DEVANAGARI))
        self.pdf.set_fallback_fonts(["deva"], exact_match=False)
        self.pdf.set_lang(words.language)
        self.pdf.set_text_shaping(use_shaping_engine=True, direction="rtl" if self.rtl else "ltr")
        self.pdf.add_page()

    @property
    def y(self) -> float:
        """Where the next line begins, mm from the top."""
        return float(self.pdf.get_y())

    def line(
        self,
        text: str,
        size: float,
        *,
        bold: bool = False,
        tone: tuple[int, int, int] = (0, 0, 0),
        inset: float = 0.0,
        width: float = _WIDTH,
        most: int = 3,
    ) -> None:
        """A paragraph of at most ``most`` lines; a longer one ends with an ellipsis."""
        self.pdf.set_font("body", "B" if bold else "", size)
        self.pdf.set_text_color(*tone)
        height = size * 0.48
        self.pdf.set_x(_LEFT + (_WIDTH - width if self.rtl else inset))
        room = width - inset
        align = "R" if self.rtl else "L"
        cut = cast("list[str]", self.pdf.multi_cell(room, height, text, align=align, dry_run=True, output="LINES"))
        if len(cut) > most:
            text = " ".join(cut[:most])[:-1] + "…"
        self.pdf.multi_cell(room, height, text, align=align, new_x="LMARGIN", new_y="NEXT")

    def rule(self, tone: tuple[int, int, int], thickness: float = 0.3) -> None:
        """A line across the page."""
        self.pdf.set_draw_color(*tone)
        self.pdf.set_line_width(thickness)
        self.pdf.line(_LEFT, self.y + 1, _LEFT + _WIDTH, self.y + 1)
        self.pdf.set_y(self.y + 2.5)

    def code(self, text: str) -> None:
        """The square code (QR, ISO/IEC 18004), at the far end of the head."""
        import segno

        left = _LEFT if self.rtl else _LEFT + _WIDTH - _QR
        matrix = tuple(segno.make(text, error="m", micro=False).matrix)
        side = _QR / len(matrix)
        self.pdf.set_fill_color(0, 0, 0)
        for row, cells in enumerate(matrix):
            for column, dark in enumerate(cells):
                if dark:
                    self.pdf.rect(left + column * side, _TOP + row * side, side, side, style="F")

    def done(self) -> bytes:
        """The bytes of the file."""
        out = io.BytesIO()
        self.pdf.output(out)
        return out.getvalue()


def _head(page: _Page, printed: Printed, words: Words, say: Phrases) -> None:
    width = _WIDTH - _QR - 4
    page.code(code_of(printed))
    page.pdf.set_y(_TOP)
    page.line(words(N_("Report of a visit")), 17, bold=True, width=width)
    page.line(words(ADVICE_NOT_DIAGNOSIS), 10, bold=True, tone=_TONES["critical"], width=width)
    page.pdf.set_y(page.y + 1.5)
    page.line(" · ".join(say.whom(printed.visit.patient)), 13, bold=True, width=width)
    parts = [words(N_("here since {time}"), time=say.stamp(printed.visit.opened)), printed.visit.procedure]
    page.line(" · ".join(part for part in parts if part), 9, tone=_GREY, width=width)
    page.pdf.set_y(max(page.y, _TOP + _QR) + 1)
    page.rule((0, 0, 0), 0.5)


def _capture(page: _Page, whole: Whole, words: Words, say: Phrases) -> None:
    line, reading = whole.line, whole.reading
    tone = _TONES.get(line.level, _GREY)
    where = [say.modality(line.modality), line.view, say.position(line.position) if line.position else ""]
    page.line(f"{say.level(line)} – {' · '.join(part for part in where if part)}", 12, bold=True, tone=tone)
    page.line(f"{say.stamp(line.received)} · {words(N_('Case'))} {line.id[:8]}", 8, tone=_GREY)
    found = say.found(line)
    page.line(" · ".join(found), 11, bold=bool(line.positive), inset=4)
    if reading is not None:
        page.line(say.advice(reading) or words(N_("Go on with the usual care.")), 10, inset=4)
        unsure = [say.heard(one.label) for one in reading.findings if one.confidence == "low"]
        limits = [words(N_("{finding}: the answer is uncertain."), finding=one) for one in unsure]
        if reading.status == "read":
            limits.append(say.looked_for(reading))
        page.line(" ".join((*map(say.heard, reading.warnings), *limits)), 8, tone=_GREY, inset=4)
    if whole.reviews:
        latest = whole.reviews[-1]
        said = f"{say.human(line)}: {latest.reviewer}" + (f". {latest.note}" if latest.note else "")
        page.line(said, 10, bold=True, inset=4, tone=_TONES["routine"])
    else:
        page.line(say.human(line) or words(N_("Not sent yet")), 9, inset=4, tone=_GREY)
    page.pdf.set_y(page.y + 0.5)
    page.rule((201, 212, 221))


def _foot(page: _Page, printed: Printed, words: Words, say: Phrases) -> None:
    models = {
        f"{whole.reading.bundle} {whole.reading.bundle_version}"
        for whole in printed.captures
        if whole.reading is not None and whole.reading.bundle
    }
    page.pdf.set_y(_BOTTOM)
    page.rule((0, 0, 0))
    text = words(N_("Printed {time} on {box}."), time=say.stamp(printed.now), box=printed.device)
    if models:
        text += " " + words(N_("Models: {models}."), models=", ".join(sorted(models)))
    page.line(text, 8, tone=_GREY)
    page.line(words(ADVICE_NOT_DIAGNOSIS), 9, bold=True)
