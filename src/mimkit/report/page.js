"use strict";
const page = JSON.parse(document.getElementById("data").textContent);
const runs = page.runs;
const off = new Set(); // numbers of runs that the legend hides
let paper = false; // while the page is printed
const state = { picture: 0, seed: 0, depth: 0, layer: 0, head: 0, query: 0 };
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "4 2", "1 2", "12 4", "5 2 1 2"];
const RAMP = [[69, 0, 84], [59, 82, 140], [33, 145, 140], [94, 201, 97], [252, 232, 36]];
const CLUSTERS = [[102, 194, 165], [252, 141, 98], [141, 160, 203], [231, 138, 195], [255, 217, 47], [140, 110, 80]];
const byId = (id) => document.getElementById(id);
const color = (run) => `var(--run${run % 8})`;

function make(tag, how = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(how)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "text") node.textContent = value;
    else if (value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

function draw(tag, how = {}, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(how)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function show(value) {
  if (value === null || value === undefined) return "-";
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  if (size !== 0 && size < 0.0001) return value.toExponential(1);
  return String(Number(value.toPrecision(4)));
}

// Charts

function ticks(low, high, count) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

// lines: [{run, name, points: [[x, y]], errors: [..], dots: [[x, y]], levels: [[name, y]]}]; whole: x are layers; until: where x ends
function chart(holder, { lines, title, what, whole, until }) {
  const seen = lines.filter((line) => !off.has(line.run));
  const width = paper ? 340 : Math.max(260, holder.clientWidth), height = paper ? 200 : 230, left = 52, right = 10, top = 10, bottom = 34;
  const ends = (line) => (line.errors || []).flatMap((error, i) => [-2, 2].map((by) => [line.points[i][0], line.points[i][1] + by * (error || 0)]));
  const all = seen.flatMap((line) => [...line.points, ...(line.dots || []), ...ends(line)]).filter((p) => p[1] !== null);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", tabindex: 0 });
  holder.replaceChildren(svg);
  const range = seen.map((l) => `${l.name}: ${show(l.points[0]?.[1])} to ${show(l.points.at(-1)?.[1])}`).join("; ");
  svg.setAttribute("aria-label", `${title} over ${what}. ${range}. Arrow keys read single values.`);
  if (!all.length) return;
  let [x0, x1, y0, y1] = [Infinity, -Infinity, Infinity, -Infinity];
  const levels = distinct(seen);
  for (const [x, y] of [...all, ...levels.map((level) => [all[0][0], level.y])]) { x0 = Math.min(x0, x); x1 = Math.max(x1, x); y0 = Math.min(y0, y); y1 = Math.max(y1, y); }
  if (until !== undefined) [x0, x1] = [0, until];
  const [first, last] = [Math.round(x0), Math.round(x1)];
  if (whole) [x0, x1] = [first - 0.3, last + 0.3];
  if (x0 === x1) x1 += 1;
  const room = (y1 - y0) * 0.06 || Math.abs(y1) * 0.1 || 1;
  if (y0 >= 0 && y0 < (y1 - y0) * 0.4) y0 = 0; else y0 -= room;
  y1 += room;
  const px = (x) => left + ((x - x0) / (x1 - x0)) * (width - left - right);
  const py = (y) => top + (1 - (y - y0) / (y1 - y0)) * (height - top - bottom);
  for (const y of ticks(y0, y1, 5)) {
    svg.append(draw("line", { class: "grid", x1: left, x2: width - right, y1: py(y), y2: py(y) }));
    svg.append(draw("text", { x: left - 7, y: py(y) + 4, "text-anchor": "end" }, show(y)));
  }
  const apart = whole && Math.ceil((last - first + 1) / Math.floor(width / 28));
  const marks = whole ? Array.from({ length: Math.ceil((last - first + 1) / apart) }, (_, i) => first + i * apart) : ticks(x0, x1, Math.max(3, Math.floor(width / 90)));
  for (const x of marks) svg.append(draw("text", { x: px(x), y: height - bottom + 17, "text-anchor": "middle" }, show(x)));
  svg.append(draw("text", { x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle" }, what));
  let above = Infinity; // the last label: the next one stands above it
  for (const level of levels) {
    svg.append(draw("line", { class: "level", x1: left, x2: width - right, y1: py(level.y), y2: py(level.y) }));
    above = Math.min(py(level.y) - 3, above - 12);
    svg.append(draw("text", { class: "level", x: width - right, y: above, "text-anchor": "end" }, `${level.name} ${show(level.y)}`));
  }
  for (const line of seen) {
    const stroke = color(line.run);
    for (const [x, y] of line.dots || []) if (y !== null) svg.append(draw("circle", { cx: px(x), cy: py(y), r: 2.6, fill: stroke, opacity: 0.45 }));
    const known = line.points.filter((p) => p[1] !== null);
    const path = known.map((p) => `${px(p[0]).toFixed(1)} ${py(p[1]).toFixed(1)}`).join("L");
    if (known.length > 1) svg.append(draw("path", { class: "curve", d: `M${path}`, stroke, "stroke-dasharray": DASHES[line.run % 8] }));
    if (known.length < 4 || px(known.at(-1)[0]) - px(known[0][0]) > 11 * known.length) for (const [x, y] of known) svg.append(draw("circle", { cx: px(x), cy: py(y), r: 3.2, fill: stroke }));
    (line.errors || []).forEach((error, i) => {
      const [x, y] = line.points[i];
      if (error && y !== null) svg.append(draw("line", { x1: px(x), x2: px(x), y1: py(y - 2 * error), y2: py(y + 2 * error), stroke, "stroke-width": 1.3 }));
    });
  }
  const cursor = draw("line", { class: "cursor", y1: top, y2: height - bottom, visibility: "hidden" });
  svg.append(cursor);
  const places = [...new Set(seen.flatMap((line) => line.points.map((p) => p[0])))].sort((a, b) => a - b);
  let at = -1;
  const point = (number) => {
    at = Math.max(0, Math.min(places.length - 1, number));
    const x = places[at], box = svg.getBoundingClientRect(), scale = box.width / width;
    cursor.setAttribute("x1", px(x)); cursor.setAttribute("x2", px(x)); cursor.setAttribute("visibility", "visible");
    const words = seen.map((line) => {
      if (!line.points.length || x < line.points[0][0] || x > line.points.at(-1)[0]) return null; // not trained so far
      let best = null;
      for (const p of line.points) if (p[1] !== null && (!best || Math.abs(p[0] - x) < Math.abs(best[0] - x))) best = p;
      return best && `${runs.length > 1 ? line.name + "  " : ""}${show(best[1])}`;
    });
    tip([`${what.replace(/s$/, "")} ${show(x)}`, ...words.filter(Boolean)].join("\n"), box.left + px(x) * scale, box.top + top);
  };
  const leave = () => { cursor.setAttribute("visibility", "hidden"); byId("tip").hidden = true; };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = x0 + (((event.clientX - box.left) / box.width) * width - left) / (width - left - right) * (x1 - x0);
    let best = 0;
    places.forEach((one, i) => { if (Math.abs(one - x) < Math.abs(places[best] - x)) best = i; });
    point(best);
  });
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
  svg.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 }[event.key];
    if (by) { event.preventDefault(); point(at < 0 ? places.length - 1 : at + by); }
    if (event.key === "Escape") leave();
  });
}

// What curves are compared with, from the lowest up; runs that share a level share its line.
function distinct(lines) {
  const found = new Map();
  for (const line of lines) for (const [name, y] of line.levels || []) {
    const shared = lines.every((other) => (other.levels || []).some((level) => level[0] === name && level[1] === y));
    const whose = shared || lines.length < 2 ? name : `${name}, ${line.name}`;
    found.set(whose, { name: whose, y });
  }
  return [...found.values()].sort((a, b) => a.y - b.y);
}

function tip(text, x, y) {
  const box = byId("tip");
  box.textContent = text;
  box.hidden = false;
  const width = box.offsetWidth;
  box.style.left = `${Math.max(4, Math.min(innerWidth - width - 4, x + 12 + width > innerWidth ? x - width - 12 : x + 12))}px`;
  box.style.top = `${Math.max(4, y)}px`;
}

function curves() {
  const axis = byId("axis").value, first = ["loss", "knn", "effective_rank", "feature_spread", "learning_rate", "images_per_second"];
  const keys = [...new Set(runs.flatMap((run) => run.curves.map((one) => one.key)))];
  const ordered = [...first.filter((key) => keys.includes(key)), ...keys.filter((key) => !first.includes(key))];
  const what = { step: "steps", epoch: "epochs", minutes: "minutes" }[axis];
  const place = (run, curve, i) => axis === "minutes" ? (curve.seconds[i] ?? 0) / 60 : axis === "epoch" ? curve.step[i] * run.batch_size / run.pictures : curve.step[i];
  const until = Math.max(0, ...runs.filter((_, run) => !off.has(run)).flatMap((run) => run.curves.map((curve) => place(run, curve, curve.step.length - 1))));
  const drawn = ordered.map((key) => { // all figures stand before one is drawn: its width depends on its neighbors
    const some = runs.map((run) => run.curves.find((one) => one.key === key));
    const about = some.find(Boolean);
    let figure = document.querySelector(`figure[data-key="${CSS.escape(key)}"]`);
    if (!figure) {
      figure = make("figure", { "data-key": key }, make("h3", { text: about.title }), make("div"));
      if (about.says) figure.append(make("figcaption", { text: about.says }));
      (first.includes(key) ? byId("charts") : byId("more-charts")).append(figure);
      byId("more").hidden = !byId("more-charts").children.length;
    }
    const lines = some.flatMap((curve, run) => {
      if (!curve) return [];
      return [{ run, name: runs[run].name, points: curve.value.map((y, i) => [place(runs[run], curve, i), y]), levels: curve.levels }];
    });
    return () => chart(figure.children[1], { lines, title: about.title, what, until });
  });
  for (const one of drawn) one();
  if (!ordered.length) byId("charts").replaceChildren(make("p", { class: "left", text: "No step was logged yet." }));
}

function metrics() {
  for (const holder of document.querySelectorAll("[data-metric]")) {
    const key = holder.dataset.metric, about = page.metrics.find((one) => one.key === key);
    const found = runs.map((run) => run.metrics?.metrics?.[key]);
    if (found.some((one) => one && one.layer[0] === null)) { // one number for the whole model
      const rows = found.map((one, run) => one && make("div", {}, make("dt", {}, make("span", { class: `swatch run${run % 8}` }), runs[run].name),
        make("dd", { text: `${show(one.value[0])}${one.stderr[0] ? " \u00b1 " + Number((2 * one.stderr[0]).toPrecision(2)) : ""} ${about.unit}` })));
      holder.replaceChildren(make("dl", { class: "pairs single" }, ...rows.filter(Boolean)));
      continue;
    }
    const lines = found.flatMap((one, run) => one ? [{
      run, name: runs[run].name, points: one.layer.map((layer, i) => [layer + 1, one.value[i]]), errors: one.stderr,
      dots: one.heads.map(([layer, head, value]) => [layer + 1 + (runs.length > 1 ? (run - (runs.length - 1) / 2) * 0.06 : 0), value]),
    }] : []);
    const decoder = about.group === "decoder";
    chart(holder, { lines, title: about.key.replaceAll("_", " "), what: decoder ? "decoder layers" : "layers", whole: true });
  }
}

function legends() {
  for (const legend of document.querySelectorAll(".legend")) {
    legend.replaceChildren(...(runs.length < 2 ? [] : runs.map((run, number) => make("button", {
      type: "button", "aria-pressed": String(!off.has(number)), "data-run": number,
      onclick: () => { off.has(number) ? off.delete(number) : off.add(number); sync(); },
    }, make("span", { class: `swatch run${number % 8}` }), run.name))));
  }
}

function sync() { // keeps the focus on the button that was pressed
  for (const button of document.querySelectorAll(".legend button")) button.setAttribute("aria-pressed", String(!off.has(Number(button.dataset.run))));
  curves();
  metrics();
}

// Pictures

const loaded = new Map();
function image(src) {
  if (!loaded.has(src)) {
    const one = new Image();
    one.src = src;
    loaded.set(src, one.decode().then(() => one));
  }
  return loaded.get(src);
}

function canvas(alt, width, height) {
  return make("canvas", { role: "img", "aria-label": alt, width, height });
}

// Cell (column, row) of a sprite of equally large cells.
async function cell(target, src, column, row, columns, rows, ramp) {
  const sprite = await image(src);
  const width = sprite.naturalWidth / columns, height = sprite.naturalHeight / rows;
  target.width = width; target.height = height;
  const pen = target.getContext("2d");
  pen.drawImage(sprite, column * width, row * height, width, height, 0, 0, width, height);
  if (!ramp) return;
  const pixels = pen.getImageData(0, 0, width, height), values = pixels.data;
  for (let i = 0; i < values.length; i += 4) {
    const place = values[i] / 255 * (RAMP.length - 1), low = Math.min(RAMP.length - 2, Math.floor(place));
    for (let c = 0; c < 3; c++) values[i + c] = RAMP[low][c] + (RAMP[low + 1][c] - RAMP[low][c]) * (place - low);
  }
  pen.putImageData(pixels, 0, 0);
}

function named(run, number) {
  const one = run.look.pictures[number];
  return [one.name, one.label].filter(Boolean).join(", ");
}

function clip(value, count) { return Math.max(0, Math.min(value, count - 1)); }

function panels(kind, fill) {
  const holder = document.querySelector(`[data-panels="${kind}"]`);
  if (!holder) return;
  holder.replaceChildren(...runs.flatMap((run, number) => {
    const inside = fill(run, number);
    if (!inside) return [];
    const panel = make("div", { class: "panel" });
    if (runs.length > 1) panel.append(make("h3", {}, make("span", { class: `swatch run${number % 8}` }), run.name));
    panel.append(inside);
    return [panel];
  }));
}

function choices() {
  const longest = runs.map((run) => run.look.pictures || []).sort((a, b) => b.length - a.length)[0];
  for (const holder of document.querySelectorAll("[data-choice]")) {
    const part = holder.dataset.choice;
    const has = runs.some((run) => run.look[part]);
    holder.hidden = !has;
    for (let bar = holder.nextElementSibling; bar && bar.classList.contains("bar"); bar = bar.nextElementSibling) bar.hidden = !has;
    holder.setAttribute("role", "radiogroup");
    holder.setAttribute("aria-label", "picture");
    holder.replaceChildren(...longest.map((one, number) => make("label", {},
      make("input", { type: "radio", name: `picture-${part}`, value: number, checked: number === state.picture,
        onchange: () => { state.picture = number; pictured(); } }),
      make("img", { src: one.src, class: "pixels", alt: `picture ${number + 1}: ${[one.name, one.label].filter(Boolean).join(", ")}` }))));
  }
}

function pictured() {
  for (const input of document.querySelectorAll(".choice input")) input.checked = Number(input.value) === state.picture;
  masks();
  attention();
}

function film() {
  panels("film", (run, number) => {
    const frames = run.film;
    if (!frames.length) return make("p", { class: "left", text: "The run drew no pictures: its method reconstructs nothing, or it has not been evaluated yet." });
    const img = make("img", {});
    const words = make("figcaption");
    const slider = make("input", { type: "range", min: 0, max: frames.length - 1, value: frames.length - 1, "aria-label": `step of the film of ${run.name}`, "data-film": number });
    const turn = () => {
      const one = frames[clip(Number(slider.value), frames.length)];
      const share = run.steps ? ` (${Math.round(100 * one.step / run.steps)}% of training)` : "";
      img.src = one.src;
      img.alt = `original, masked and reconstructed pictures at step ${one.step}`;
      words.textContent = `Step ${one.step.toLocaleString("en")}${share}, evaluation ${Number(slider.value) + 1} of ${frames.length}.`;
    };
    slider.addEventListener("input", turn);
    let timer = 0;
    const play = make("button", { type: "button", text: "Play", onclick: () => {
      if (timer) { clearInterval(timer); timer = 0; play.textContent = "Play"; return; }
      play.textContent = "Stop";
      if (Number(slider.value) === frames.length - 1) slider.value = -1;
      timer = setInterval(() => {
        slider.value = Number(slider.value) + 1;
        turn();
        if (Number(slider.value) >= frames.length - 1) { clearInterval(timer); timer = 0; play.textContent = "Play"; }
      }, 500);
    } });
    turn();
    run.turn = { slider, turn };
    const bar = make("div", { class: "bar" }, slider, play);
    bar.hidden = frames.length < 2;
    return make("figure", { class: "film" }, make("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "film" }, img), words, bar);
  });
}

function captioned(node, text) { return make("figure", {}, node, make("figcaption", { text })); }

function masks() {
  byId("seed-out").value = state.seed;
  panels("masks", (run) => {
    const found = run.look.masks;
    if (!found) return null;
    const number = clip(state.picture, found.src.length), row = clip(state.seed, found.seeds), name = named(run, number);
    const original = make("img", { class: "pixels", src: run.look.pictures[number].src, alt: `original: ${name}` });
    const cells = found.columns.map((words, column) => {
      const one = canvas(`${words}: ${name}, mask seed ${row}`, 1, 1);
      cell(one, found.src[number], column, row, found.columns.length, found.seeds);
      return captioned(one, words);
    });
    const parts = found.views > 1 ? ` The first of ${found.views} parallel parts.` : "";
    return make("figure", {}, make("div", { class: "triple" }, captioned(original, "original"), ...cells),
      make("figcaption", { text: `${name}. ${(100 * found.hidden).toFixed(0)}% of the patches are hidden.${parts}` }));
  });
}

function clusters() {
  const deepest = Math.max(0, ...runs.map((run) => run.look.layers?.length || 0));
  byId("depth").closest(".bar").hidden = !deepest;
  byId("depth-out").value = state.depth + 1;
  panels("clusters", (run) => {
    const layers = run.look.layers;
    if (!layers) return null;
    const number = clip(state.depth, layers.length), layer = layers[number], [rows, columns] = layer.grid;
    const tiles = run.look.pictures.map((one, picture) => {
      const name = named(run, picture), where = `layer ${number + 1}, ${name}`;
      const cut = canvas(`cut: ${where}`, 1, 1), groups = canvas(`k-means clusters over the picture: ${where}`, 1, 1), pca = canvas(`principal components: ${where}`, columns, rows);
      image(one.src).then((whole) => {
        const [width, height] = [whole.naturalWidth, whole.naturalHeight];
        const x = (i) => Math.round(i * width / columns), y = (i) => Math.round(i * height / rows);
        const over = (target, digits, paint, gray) => {
          target.width = width; target.height = height;
          const pen = target.getContext("2d");
          pen.drawImage(whole, 0, 0);
          if (gray) { pen.globalCompositeOperation = "saturation"; pen.fillStyle = "#888"; pen.fillRect(0, 0, width, height); }
          pen.globalCompositeOperation = "source-over";
          [...digits].forEach((digit, i) => {
            const c = i % columns, r = Math.floor(i / columns);
            pen.fillStyle = paint(Number(digit));
            pen.fillRect(x(c), y(r), x(c + 1) - x(c), y(r + 1) - y(r));
          });
        };
        over(cut, layer.cut[picture], (side) => side ? "transparent" : "rgba(128, 128, 128, 0.8)");
        over(groups, layer.kmeans[picture], (group) => `rgba(${CLUSTERS[group % CLUSTERS.length].join(",")}, 0.7)`, true);
      });
      cell(pca, layer.pca, picture, 0, run.look.pictures.length, 1);
      const original = make("img", { class: "pixels", src: one.src, alt: name });
      return make("div", { class: "quad" }, captioned(original, one.label || "picture"), captioned(cut, "cut"), captioned(groups, "k-means"), captioned(pca, "PCA"));
    });
    return make("figure", {}, make("div", { class: "tiles" }, ...tiles), make("figcaption", { text: `Layer ${number + 1} of ${layers.length}, ${rows} x ${columns} tokens.` }));
  });
}

function attention() {
  byId("layer-out").value = state.layer + 1;
  byId("head-out").value = state.head + 1;
  panels("attention", (run) => {
    const found = run.look.attention;
    if (!found) return null;
    const number = clip(state.picture, found.src.length), layer = clip(state.layer, found.heads.length), head = clip(state.head, found.heads[layer]);
    const columns = found.queries.length + found.places.length, rows = found.heads.reduce((a, b) => a + b, 0);
    const before = found.heads.slice(0, layer).reduce((a, b) => a + b, 0), [high, wide] = found.grid;
    let column = 0, who = found.queries[0], mark = null;
    if (typeof state.query === "string") column = Math.max(0, found.queries.indexOf(state.query));
    else if (Array.isArray(state.query)) {
      let least = Infinity;
      found.places.forEach(([r, c], i) => {
        const far = Math.hypot((r + 0.5) / high - state.query[0], (c + 0.5) / wide - state.query[1]);
        if (far < least) { least = far; column = found.queries.length + i; mark = [r, c]; }
      });
    }
    who = mark ? `patch in row ${mark[0] + 1}, column ${mark[1] + 1}` : found.queries[column];
    const name = named(run, number), large = canvas(`attention of head ${head + 1} in layer ${layer + 1}, ${who}: ${name}`, wide, high);
    cell(large, found.src[number], column, before + head, columns, rows, true);
    const shown = canvas(`${name}; click a patch to let it look`, 1, 1);
    shown.classList.add("pick");
    image(run.look.pictures[number].src).then((whole) => {
      const scale = Math.max(1, Math.ceil(256 / whole.naturalWidth));
      shown.width = whole.naturalWidth * scale; shown.height = whole.naturalHeight * scale;
      const pen = shown.getContext("2d");
      pen.imageSmoothingEnabled = false;
      pen.drawImage(whole, 0, 0, shown.width, shown.height);
      if (!mark) return;
      const width = shown.width / wide, height = shown.height / high, edges = [mark[1] * width, mark[0] * height, width, height];
      pen.lineWidth = 6; pen.strokeStyle = "#000"; pen.strokeRect(...edges);
      pen.lineWidth = 3; pen.strokeStyle = "#fff"; pen.strokeRect(...edges);
    });
    shown.addEventListener("click", (event) => {
      const box = shown.getBoundingClientRect();
      choose([(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width]);
    });
    const small = Array.from({ length: found.heads[layer] }, (_, i) => {
      const one = canvas("", wide, high);
      one.setAttribute("aria-hidden", "true");
      cell(one, found.src[number], column, before + i, columns, rows, true);
      return make("button", { type: "button", "aria-pressed": String(i === head), "aria-label": `head ${i + 1}`, onclick: () => set("head", i) }, one, String(i + 1));
    });
    return make("figure", {}, make("div", { class: "pair" }, captioned(shown, run.look.pictures[number].label || name), captioned(large, `layer ${layer + 1}, head ${head + 1}, over the patches`)),
      make("div", { class: "heads" }, ...small),
      make("figcaption", { text: `Who looks: ${who}. Above: the ${found.heads[layer]} heads of layer ${layer + 1} of ${found.heads.length}.` }));
  });
}

function choose(query) {
  state.query = query;
  const select = byId("query");
  if (typeof query === "string") select.value = query;
  else {
    const [row, column] = query.map((share) => Math.round(share * 100));
    const option = select.querySelector("[data-single]");
    option.value = query.join(" ");
    option.textContent = `patch at ${column}% from left, ${row}% from top`;
    select.value = option.value;
  }
  attention();
}

function set(name, value) {
  state[name] = value;
  byId(name).value = byId(name).min === "1" ? value + 1 : value;
  const focused = document.activeElement?.getAttribute("aria-label");
  ({ seed: masks, depth: clusters, layer: attention, head: attention })[name]();
  if (focused?.startsWith("head ")) document.querySelector(`.heads [aria-label="${focused}"]`)?.focus();
}

function neighbors() {
  panels("neighbors", (run) => {
    const found = run.look.neighbors;
    if (!found) return null;
    const lines = found.queries.map((query, number) => {
      const one = run.look.pictures[number];
      const first = captioned(make("img", { class: "pixels", src: one.src, alt: `query: ${named(run, number)}` }), one.label || "query");
      const others = query.items.map((item, i) => {
        const near = canvas(`neighbor ${i + 1}, cosine ${item.cosine}${item.label ? ", " + item.label : ""}`, 1, 1);
        cell(near, query.src, i, 0, query.items.length, 1);
        const dot = found.labeled ? (item.same ? "\u25cf " : "\u25cb ") : "";
        const figure = captioned(near, `${dot}${item.cosine.toFixed(2)}`);
        if (item.label) figure.lastChild.append(make("span", { class: "cut", title: item.label, text: item.label }));
        return figure;
      });
      return make("div", { class: "near" }, first, ...others);
    });
    const items = found.queries.flatMap((query) => query.items), same = items.filter((item) => item.same).length;
    const words = `Neighbors among ${found.bank} pictures.` + (found.labeled ? ` ${same} of ${items.length} are of the query's class.` : "");
    return make("figure", {}, ...lines, make("figcaption", { text: words }));
  });
}

function similarities() {
  const has = (run) => run.metrics?.cka?.length > 0;
  if (!byId("cka")) return;
  byId("cka").hidden = !runs.some(has);
  panels("cka", (run) => {
    if (!has(run)) return null;
    const all = run.metrics.cka, count = all.length, side = 230, gap = 28, unit = (side - gap) / count;
    const svg = draw("svg", { viewBox: `0 0 ${side} ${side}`, role: "img", tabindex: 0 });
    svg.style.maxWidth = "20rem";
    svg.setAttribute("aria-label", `CKA of ${count} layers; first with last ${show(all[0][count - 1])}`);
    all.forEach((line, i) => {
      if (count < 16 || i % 2 === 0) {
        svg.append(draw("text", { x: gap - 6, y: (count - i - 0.5) * unit + 4, "text-anchor": "end" }, i + 1));
        svg.append(draw("text", { x: gap + (i + 0.5) * unit, y: side - gap + 16, "text-anchor": "middle" }, i + 1));
      }
      line.forEach((value, j) => {
        const place = Math.max(0, Math.min(1, value ?? 0)) * (RAMP.length - 1), low = Math.min(RAMP.length - 2, Math.floor(place));
        const shade = RAMP[low].map((one, c) => Math.round(one + (RAMP[low + 1][c] - one) * (place - low)));
        const box = draw("rect", { x: gap + j * unit, y: (count - 1 - i) * unit, width: unit - 1, height: unit - 1, fill: `rgb(${shade.join(",")})` });
        box.addEventListener("pointermove", (event) => tip(`layers ${i + 1} and ${j + 1}\n${show(value)}`, event.clientX, event.clientY));
        box.addEventListener("pointerleave", () => { byId("tip").hidden = true; });
        svg.append(box);
      });
    });
    const spread = all.flat().filter((one) => one !== null);
    return make("figure", {}, svg, make("figcaption", { text: `Layers against layers, from ${show(Math.min(...spread))} to ${show(Math.max(...spread))}.` }));
  });
}

// Following a run that still trains

async function follow() {
  const pulse = byId("pulse"), button = byId("refresh");
  let looked = page.looked, away = 0;
  const ask = async (path) => (await fetch(path, { cache: "no-store" })).json();
  button.addEventListener("click", async () => {
    button.disabled = true;
    try { await ask("look.json"); } catch { button.disabled = false; }
  });
  const poll = async () => {
    try {
      const now = await ask("live.json");
      away = 0;
      Object.assign(runs[0], { status: now.status, step: now.step });
      runs[0].curves = now.curves;
      byId("status-0").textContent = now.status;
      if (now.film.length !== runs[0].film.length || now.film.at(-1) !== runs[0].film.at(-1)?.step) {
        const at = runs[0].turn, last = !at || Number(at.slider.value) === runs[0].film.length - 1, place = at?.slider.value;
        runs[0].film = now.film.map((step) => ({ step, src: `film/${step}` }));
        film();
        if (!last) { runs[0].turn.slider.value = place; runs[0].turn.turn(); }
      }
      button.disabled = now.working;
      const news = now.checkpoint && now.checkpoint !== now.looked;
      const what = now.working ? "Looking at the checkpoint; this takes a while." : now.problem ? now.problem : news ? "A new checkpoint can be looked at." : "";
      pulse.textContent = `${now.status}. ${what}`;
      if (now.looked !== looked) location.reload();
      else if (!document.hidden) curves();
    } catch {
      away += 1;
      pulse.textContent = "The server does not answer; the page stays as it is.";
    }
    setTimeout(poll, Math.min(60000, 3000 * 2 ** away));
  };
  poll();
}

// Begin

for (const run of runs) run.look = run.look || {};
const deepest = Math.max(1, ...runs.map((run) => run.look.layers?.length || 0));
const attending = runs.map((run) => run.look.attention).filter(Boolean);
const most = Math.max(1, ...attending.map((one) => one.heads.length));
byId("depth").max = deepest;
byId("layer").max = most;
byId("head").max = Math.max(1, ...attending.flatMap((one) => one.heads));
Object.assign(state, { depth: deepest - 1, layer: most - 1, query: attending[0]?.queries[0] ?? 0 });
byId("query").replaceChildren(...[...new Set(attending.flatMap((one) => one.queries))].map((words) => make("option", { value: words, text: words })),
  make("option", { value: "0.5 0.5", "data-single": true, text: "patch in the middle" }));
byId("query").addEventListener("change", (event) => choose(event.target.selectedOptions[0].dataset.single === undefined ? event.target.value : event.target.value.split(" ").map(Number)));
for (const name of ["seed", "depth", "layer", "head"]) {
  const input = byId(name), first = Number(input.min);
  input.value = state[name] + first;
  input.addEventListener("input", () => set(name, Number(input.value) - first));
}
byId("axis").addEventListener("change", curves);
byId("more").addEventListener("toggle", curves);
for (const [event, begins] of [["beforeprint", true], ["afterprint", false]]) addEventListener(event, () => {
  paper = begins; // drawn anew for the width of paper, or their letters would shrink
  if (begins) for (const one of document.querySelectorAll("details:not(.card details)")) one.open = true;
  curves();
  metrics();
});
let asked = 0;
addEventListener("resize", () => { cancelAnimationFrame(asked); asked = requestAnimationFrame(() => { curves(); metrics(); }); });
legends();
curves();
film();
choices();
masks();
clusters();
attention();
neighbors();
metrics();
similarities();
document.documentElement.dataset.ready = "yes";
if (page.live) follow();
