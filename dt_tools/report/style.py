# SPDX-License-Identifier: BSD-2-Clause
"""The style sheet of the HTML report: light, and dark where the reader's system is."""

from __future__ import annotations

CSS = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1b1f24;--soft:#5d6672;--line:#d9dde3;
--smmu:#eaf2fc;--accent:#1f6feb;--yes:#1a7f4b;--together:#b06a00;--no:#c0392b;--edge:#9aa7b8;
--again:#7b3fc4;--again-bg:#f1e9fb;--shared:#b85c00;--shared-bg:#fdeedd;--pill:#e8edf4;
--warn:#8a5a00;--warn-bg:#fbeecb}
@media(prefers-color-scheme:dark){:root{--bg:#12151a;--card:#1a1e25;--ink:#e4e7eb;--soft:#98a2b0;
--line:#313843;--smmu:#172740;--accent:#58a0ff;--yes:#4cc38a;--together:#f0b04a;--no:#ff7b6b;
--edge:#5b6778;--again:#c39bff;--again-bg:#33244b;--shared:#ffae66;--shared-bg:#4a2e14;
--pill:#2a323e;--warn:#f2cd72;--warn-bg:#453613}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:14px/1.5 system-ui,sans-serif}
main{max-width:1360px;margin:0 auto;padding:20px 24px 64px}
h1{font-size:20px;margin:0 0 12px}h2{font-size:19px;margin:0}h3{font-size:15px;margin:28px 0 8px}
code,.mono,td,svg text{font-family:ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace}
a{color:var(--accent);text-decoration:none}a:hover{text-decoration:underline}
.soft{color:var(--soft)}
.board{margin:28px 0 0;padding-top:20px;border-top:2px solid var(--line);
content-visibility:auto;contain-intrinsic-size:auto 3000px}
h2:first-child{margin-top:0}main>.board:first-child{margin:0;border:0;padding:0}
.tiles{display:flex;flex-wrap:wrap;gap:10px;margin:14px 0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:8px 14px}
.tile b{display:block;font-size:19px;line-height:1.25}
.tile.yes b{color:var(--yes)}.tile.together b{color:var(--together)}.tile.no b{color:var(--no)}
.tile.again b{color:var(--again)}.tile.shared b{color:var(--shared)}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;margin:6px 0 10px;font-size:12.5px;
color:var(--soft);align-items:center}
.legend span{display:inline-flex;gap:6px;align-items:center}
.scroll{overflow-x:auto}
.frame{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:10px 12px;
overflow-x:auto}
details>summary{cursor:pointer;padding:5px 2px}
details.page{margin:0 0 10px}
.map{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:6px;margin:0 0 14px}
.map a{display:block;background:var(--smmu);border:1px solid var(--line);
border-left:4px solid var(--accent);border-radius:6px;padding:4px 8px;color:var(--ink);
overflow:hidden;white-space:nowrap;text-overflow:ellipsis;font-size:12.5px}
.map a.off{opacity:.5;border-left-style:dashed}.map small{display:block;color:var(--soft)}
svg.pic{display:block}
svg text{fill:var(--ink)}
svg .name{font-size:12.5px;font-weight:600}svg .small{font-size:10.5px;fill:var(--soft)}
svg .end{text-anchor:end;paint-order:stroke;stroke:var(--card);stroke-width:3px}
svg .id{font-size:11px;text-anchor:middle}
svg .smmu{fill:var(--smmu);stroke:var(--accent);stroke-opacity:.55}svg .bar{fill:var(--accent)}
svg .box{fill:var(--card);stroke:var(--edge)}svg .bus .box{stroke-width:1.5}
svg .edge{fill:none;stroke:var(--edge);stroke-width:1.6}
svg .edge.wide{stroke-width:4.5;stroke-opacity:.6}
svg .edge.again{stroke:var(--again)}svg .edge.shared{stroke:var(--shared)}
svg .pill rect{fill:var(--pill);stroke:var(--edge)}
svg .pill.again rect{fill:var(--again-bg);stroke:var(--again)}
svg .pill.shared rect{fill:var(--shared-bg);stroke:var(--shared);stroke-dasharray:4 2}
svg .yes{fill:var(--yes)}svg .no{fill:none;stroke:var(--no);stroke-width:2}
svg .ring{fill:none;stroke:var(--together);stroke-width:1.6}svg .half{fill:var(--together)}
svg .tag rect{fill:var(--pill)}svg .tag text{font-size:10px;text-anchor:middle}
svg .tag.warn rect{fill:var(--warn-bg)}svg .tag.warn text{fill:var(--warn)}
svg .block.off>.smmu,svg .block.off>.bar,svg .master.off,svg .block.off .edge{opacity:.5}
svg .block.off>.smmu,svg .master.off .box{stroke-dasharray:5 3}
svg .rail path{fill:none;stroke:var(--again);stroke-width:1.5}
svg .rail .lead{stroke-dasharray:1 4;stroke-opacity:.7}
svg .rail.off path{stroke-dasharray:4 3}svg .rail circle{fill:var(--again)}
svg .rail circle.idle{fill:var(--card);stroke:var(--again);stroke-width:1.5}
svg .rail text{fill:var(--again)}
svg g:target>.smmu{stroke-width:3;stroke-opacity:1}
table{border-collapse:collapse;background:var(--card);border:1px solid var(--line);font-size:12.5px;
min-width:50%}
th{text-align:left;font:600 12px system-ui,sans-serif;color:var(--soft);padding:5px 10px;
border-bottom:1px solid var(--line);white-space:nowrap}
td{padding:4px 10px;border-bottom:1px solid var(--line);vertical-align:top;white-space:nowrap}
tr:last-child td{border-bottom:0}
td.text{font-family:system-ui,sans-serif;white-space:normal;min-width:30em}
td.needs{white-space:normal;min-width:9em}
td.path,.path{white-space:normal;overflow-wrap:anywhere;min-width:20em}
td ul{margin:0;padding-left:16px}
td details summary{padding:0;color:var(--soft)}
.yes{color:var(--yes)}.together,.warning{color:var(--together)}.no,.error{color:var(--no)}
.again{color:var(--again)}.shared{color:var(--shared)}
.rule{font-family:ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace;color:var(--accent)}
@media print{details:not([open])>*{display:block}.frame{overflow:visible}}
"""
