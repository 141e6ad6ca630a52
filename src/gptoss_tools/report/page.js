"use strict";
// Draws the figures in the theme's colours, switches runs and series, filters the decisions.
(() => {
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const chosen = {}; // panel -> which of its figures
  const hidden = new Set(); // groups switched off: "run:0" on the whole page, "panel/group" in one
  const system = matchMedia("(prefers-color-scheme: dark)");
  const PAPER = 680; // width of a printed page in CSS pixels
  let printing = false;

  // --- theme and colours -----------------------------------------------------------------------
  const stored = (value) => {
    try {
      if (value) localStorage.setItem("gptoss-theme", value);
      return localStorage.getItem("gptoss-theme");
    } catch { return null; } // no storage for this page: the choice lasts until it is closed
  };
  const dark = () => !printing && (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  let palette = {};
  const readPalette = () => {
    const style = getComputedStyle(root), side = dark() ? 2 : 1;
    palette = new Proxy({}, { get(known, name) {
      if (!(name in known)) {
        const pair = style.getPropertyValue("--" + name).match(/light-dark\(\s*(#\w+)\s*,\s*(#\w+)\s*\)/);
        known[name] = pair ? parse(pair[side]) : [128, 128, 128];
      }
      return known[name];
    } });
  };
  const parse = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const RAMPS = { ramp: ["ramp0", "ramp1", "ramp2", "ramp3"], heat: ["heat0", "heat1"] };
  const along = (names, place) => {
    const at = Math.min(place, 0.9999) * (names.length - 1), low = Math.floor(at), part = at - low;
    const from = palette[names[low]], to = palette[names[low + 1]];
    return from.map((value, i) => Math.round(value + part * (to[i] - value)));
  };
  const colour = (token) => {
    const [, name, place, opacity] = token.match(/^@(\w+)(?::([\d.]+))?(?:\/([\d.]+))?$/);
    if (name === "none") return "rgba(0,0,0,0)";
    const rgb = place === undefined ? palette[name] : along(RAMPS[name], +place);
    return `rgba(${rgb.join(",")},${opacity ?? 1})`;
  };
  const paint = (value, key = "") => {
    if (typeof value === "string") return value[0] === "@" && /color$/i.test(key) ? colour(value) : value;
    if (Array.isArray(value)) {
      if (key === "colorscale") return value.map(([at, token]) => [at, colour(token)]);
      const plain = typeof value[0] !== "object" || value[0] === null || Array.isArray(value[0]);
      return plain ? value : value.map((part) => paint(part));
    }
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, paint(part, name)]));
  };

  // --- figures ---------------------------------------------------------------------------------
  const shows = (id, { meta = {} }) => !hidden.has("run:" + meta.run) && !hidden.has(id + "/" + meta.group);
  const font = getComputedStyle(document.body).fontFamily;
  const draw = (id) => {
    const place = document.getElementById("fig-" + id);
    const grid = place.closest(".grid");
    const figure = figures[id][chosen[id] ?? 0];
    const layout = paint(figure.layout);
    layout.font.family = font;
    const columns = +grid.className.match(/columns-(\d)/)[1];
    if (printing) layout.width = Math.floor((PAPER - 24 * (columns - 1)) / columns);
    const data = figure.data.map((trace) => ({ ...paint(trace), visible: shows(id, trace) }));
    const options = { displayModeBar: false, responsive: !printing, doubleClick: false };
    return Plotly.react(place, data, layout, options);
  };
  const drawAll = async () => {
    readPalette();
    for (const swatch of all("[data-colour]")) swatch.style.setProperty("--swatch", colour(swatch.dataset.colour));
    let drawn = 0;
    for (const id of Object.keys(figures)) {
      try {
        const done = draw(id);
        if (!printing) await done; // a print begins without waiting for promises
        drawn += 1;
      } catch (error) {
        console.error(`figure ${id}: ${error.message}`);
      }
    }
    root.dataset.drawn = drawn;
  };

  // --- what can be switched --------------------------------------------------------------------
  const press = (group, on) => {
    on ? hidden.delete(group) : hidden.add(group);
    for (const key of all("button.key")) if (key.dataset.group === group) key.setAttribute("aria-pressed", on);
  };
  for (const key of all("button.key[aria-pressed=false]")) hidden.add(key.dataset.group);
  for (const key of all("button.key")) key.addEventListener("click", () => {
    const { group } = key.dataset, isRun = group.startsWith("run:");
    press(group, hidden.has(group));
    if (isRun) for (const part of all("[data-run]:not(.decision)")) part.hidden = hidden.has("run:" + part.dataset.run);
    if (isRun) filter();
    for (const id of Object.keys(figures)) if (isRun || group.startsWith(id + "/")) draw(id);
  });
  for (const chooser of all("[data-choose]")) chooser.addEventListener("change", () => {
    chosen[chooser.dataset.choose] = +chooser.value;
    draw(chooser.dataset.choose);
  });
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    stored(root.dataset.theme);
    drawAll();
  });
  system.addEventListener("change", () => { if (!root.dataset.theme) drawAll(); });

  // --- the worst decisions ---------------------------------------------------------------------
  const rows = all(".decision"), search = document.getElementById("filter");
  const picks = all("[data-filter]");
  const filter = () => {
    if (!search) return;
    const wanted = search.value.toLowerCase();
    let count = 0;
    for (const row of rows) {
      const fits = picks.every((pick) => !pick.value || row.dataset[pick.dataset.filter] === pick.value)
        && !hidden.has("run:" + row.dataset.run) && row.textContent.toLowerCase().includes(wanted);
      row.hidden = !fits;
      count += fits;
    }
    document.getElementById("shown").value = `${count} of ${rows.length}`;
  };
  search?.addEventListener("input", filter);
  for (const pick of picks) pick.addEventListener("change", filter);
  for (const button of all("[data-sort]")) button.addEventListener("click", () => {
    const head = button.parentElement, down = head.getAttribute("aria-sort") === "descending";
    for (const other of all("th[aria-sort]")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "ascending" : "descending");
    const key = (row) => {
      const cell = row.querySelector("td." + button.dataset.sort);
      return cell.dataset.key === undefined ? cell.textContent : +cell.dataset.key;
    };
    const order = (a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0) * (down ? 1 : -1);
    document.getElementById("decisions").append(...rows.sort(order));
  });
  for (const button of all("button.more")) button.addEventListener("click", () => {
    const detail = button.closest("tbody").querySelector(".detail");
    detail.hidden = !detail.hidden;
    button.setAttribute("aria-expanded", !detail.hidden);
    button.textContent = detail.hidden ? "show" : "hide";
  });
  for (const button of all("button.all")) button.addEventListener("click", () => {
    button.previousElementSibling.classList.remove("clipped");
    button.remove();
  });

  // --- paper -----------------------------------------------------------------------------------
  let unfolded = [];
  addEventListener("beforeprint", () => {
    printing = true;
    unfolded = all("details.sheet:not([open])");
    for (const sheet of unfolded) sheet.open = true;
    drawAll();
  });
  addEventListener("afterprint", () => {
    printing = false;
    for (const sheet of unfolded) sheet.open = false;
    drawAll();
  });

  const before = stored();
  if (before) root.dataset.theme = before;
  drawAll();
})();
