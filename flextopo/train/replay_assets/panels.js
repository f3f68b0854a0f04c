// One side: the account of its loss, its cluster, and its last decision in words and numbers.

const below = (levels) => levels ? `${levels} level${levels > 1 ? "s" : ""} below the best there` : "the best there";

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

class Panel {
  constructor(tape, index) {
    Object.assign(this, { tape, index, side: tape.sides[index], pointed: null, shownAt: -1 });
    this.other = tape.sides.length > 1 ? tape.sides[1 - index] : null;
    const letter = "ab"[index];
    this.total = element("b");
    this.bars = tape.terms.map(() => [element("i"), element("span", { class: "figure" })]);
    this.canvas = element("canvas", { role: "img" });
    this.caption = element("p", { class: "caption" });
    this.decision = element("div", { class: "decision" });
    const heading = element("h2", { id: `side-${letter}` }, element("span", { class: `key ${letter}`, "aria-hidden": "true" }), this.side.name);
    const total = element("p", { class: "total" }, this.total, ` of ${tape.demanded.toFixed(0)} GPU-h demanded`);
    this.section = element("section", { class: `side ${letter}`, "aria-labelledby": `side-${letter}` },
      element("header", {}, heading, total), this.account(),
      element("div", { class: "cluster", role: "group", "aria-label": `Servers under ${this.side.name}` }, this.canvas), this.caption, this.decision);
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerdown", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => { this.hovered = -1; this.writeCaption(); });
    this.hovered = -1;
  }

  account() {
    const rows = this.tape.terms.map((term, k) => {
      const [bar, figure] = this.bars[k];
      return element("div", {}, element("dt", {}, term), element("dd", {}, element("span", { class: "bar" }, bar), figure));
    });
    return element("dl", { class: "account", "aria-label": "Loss so far in weighted GPU-hours" }, ...rows);
  }

  attach() {
    this.drawing = new ClusterDrawing(this.canvas, this.tape, this.side);
  }

  // The highest term of any side at the end is a full bar.
  static widest(tape) {
    const ends = tape.sides.flatMap((side) => side.lossAt(side.time.length - 1, tape.end));
    return Math.max(1e-9, ...ends);
  }

  // Show a frame of this side at a time; the states of all sides are there already.
  show(frame, time, redraw) {
    this.writeAccount(this.side.lossAt(frame, time));
    if (frame === this.frame && !redraw) return;
    this.frame = frame;
    this.writeDecision(frame);
    this.draw();
    this.writeCaption();
  }

  writeAccount(terms) {
    const widest = (this.widestTerm ??= Panel.widest(this.tape));
    const total = terms.reduce((sum, term) => sum + term, 0);
    this.total.textContent = `${total.toFixed(2)} GPU-h lost`;
    terms.forEach((term, k) => {
      const [bar, figure] = this.bars[k];
      bar.style.width = `${(100 * term) / widest}%`;
      figure.textContent = term.toFixed(2);
    });
  }

  // The choice that is being made at this frame, with what to mark for it.
  choiceHere() {
    const at = this.side.choiceAt(this.frame);
    return at >= 0 && this.side.choices[at].frame === this.frame ? this.side.choices[at] : null;
  }

  draw() {
    const choice = this.choiceHere();
    const candidate = choice && choice.shown[this.pointed ?? choice.chosen ?? -1];
    const single = candidate && [{ node: candidate.node, gpuMask: candidate.gpu_mask }];
    const marked = candidate && {
      seats: candidate.seats?.length ? candidate.seats.map(([, node, gpuMask]) => ({ node, gpuMask })) : single,
      victims: [...candidate.victims, ...candidate.stopped],
    };
    this.drawing.draw(marked, this.other);
    if (marked) this.drawing.reveal(candidate.node);
  }

  writeCaption() {
    const { tape, side, hovered } = this;
    const free = side.pods.reduce((sum, pod) => sum + (pod < 0), 0);
    const waiting = `waiting for GPUs: online ${side.onlineWait[this.frame]}, batch ${side.batchWait[this.frame]}`;
    const text = `${free} of ${tape.numGpus} GPUs free; ${waiting}`;
    this.canvas.setAttribute("aria-label", `Cluster under ${side.name}: ${text}`);
    if (hovered < 0) {
      this.caption.textContent = text;
      return;
    }
    const node = tape.nodeOf(hovered), gpu = hovered - tape.first[node];
    const model = tape.models[tape.scene.node_model[node]], numa = model.gpu_numa[gpu];
    const leaf = tape.network ? `${tape.network.leaf_names[tape.network.leaf[node]]}, ` : "";
    const where = `${leaf}node ${node} (${model.name}), socket ${model.numa_socket[numa]}, NUMA node ${numa}${model.gpu_island.length ? `, island ${model.gpu_island[gpu]}` : ""}, GPU ${gpu}`;
    const pod = side.pods[hovered], use = tape.scene.uses[side.uses[hovered]].meaning;
    this.caption.textContent = pod < 0 ? `${where}: free` : `${where}: ${tape.podName(pod)}, ${use}; ${tape.describePod(pod)}`;
  }

  point(event) {
    this.hovered = this.drawing.gpuAt(event.clientX, event.clientY);
    this.writeCaption();
  }

  writeDecision(frame) {
    const at = this.side.choiceAt(frame);
    const now = at >= 0 && this.side.choices[at].frame === frame;
    this.decision.classList.toggle("past", !now);
    const shown = 2 * at + now;
    if (this.shownAt === shown) return;
    this.shownAt = shown;
    this.pointed = null;
    if (at < 0) {
      const first = this.side.choices[0];
      const text = first ? `No decision yet; the first is at ${clock(this.side.time[first.frame])}.` : "No decision on this tape.";
      this.decision.replaceChildren(element("p", { class: "reason" }, text));
      return;
    }
    const choice = this.side.choices[at], time = clock(this.side.time[choice.frame]);
    const title = `${now ? "Decision" : "Last decision,"} ${at + 1} of ${this.side.choices.length}`;
    this.decision.replaceChildren(
      element("h3", {}, title, element("span", { class: "when" }, time)),
      element("p", { class: "ask" }, this.question(choice)),
      element("p", { class: "answer" }, this.answer(choice)),
      element("p", { class: "reason" }, choice.reason),
      ...this.seats(choice),
      ...(choice.shown.length ? [this.table(choice, now)] : []));
  }

  question(choice) {
    const pod = choice.pod, waited = choice.waited_s > 0 ? `, pending for ${duration(choice.waited_s)}` : "";
    if (this.tape.gangOf(pod) >= 0) return gangQuestion(this.tape, choice, waited);
    return `${this.tape.podName(pod)} fits nowhere${waited}: ${this.tape.describePod(pod, false)}.`;
  }

  answer(choice) {
    if (choice.chosen === null) return "Waits: nobody is evicted now.";
    const taken = choice.shown[choice.chosen], { tape } = this;
    const network = taken.seats?.length ? within(tape, taken.tier, taken.node) : `on node ${taken.node}`;
    const place = `${network}, ${tape.levels[taken.level].label} (${below(taken.below)})`;
    const after = tape.network ? `, after ${duration(taken.wait_s)}` : "";
    if (!taken.victims.length) return `Starts ${place}${after}; nobody is evicted.`;
    const gone = [...taken.victims, ...taken.stopped];
    const gpus = gone.reduce((sum, pod) => sum + tape.pods.gpus[pod], 0);
    return `Evicts ${count(gone.length, "pod")} with ${count(gpus, "GPU")} and starts ${place}${after}.`;
  }

  // What happens on each server of a gang.
  seats(choice) {
    const taken = choice.shown[choice.chosen ?? -1];
    return taken?.seats?.length ? [seatTable(this.tape, taken, `seats-${"ab"[this.index]}`)] : [];
  }

  columns() {
    const wait = this.tape.network ? ["wait"] : [];
    return ["node", "victims", "level", ...wait, "discarded", "cost", ...(this.side.scores ? [this.side.scores] : [])];
  }

  table(choice, now) {
    const head = element("tr", {}, ...this.columns().map((name) => element("th", { scope: "col" }, name.replace(/ (?=\S+$)/, "\u00a0"))));
    const rows = choice.shown.map((candidate, i) => this.row(choice, candidate, i, now));
    if (choice.wait_score !== null) rows.push(this.waitRow(choice));
    const rest = choice.candidates - choice.shown.length;
    const about = `Candidates, the cheapest first; discarded and cost in GPU-h${rest > 0 ? `; ${rest} more not shown` : ""}`;
    const id = `about-${"ab"[this.index]}`;
    const table = element("table", { "aria-labelledby": id }, element("thead", {}, head), element("tbody", {}, ...rows));
    return element("div", {}, element("p", { class: "about", id }, about), element("div", { class: "scroll", tabindex: "0", role: "group", "aria-labelledby": id }, table));
  }

  row(choice, candidate, i, now) {
    const chosen = i === choice.chosen, gang = candidate.seats?.length > 0;
    const nodes = gang ? runs(candidate.seats.map(([, node]) => node)) : String(candidate.node);
    const name = chosen ? element("span", { class: "chosen" }, "taken") : "";
    const node = element("button", { type: "button", title: "Show this candidate", "aria-label": `Show the candidate on node ${nodes}`, disabled: now ? null : "" }, nodes);
    const network = gang ? [element("span", { class: "within" }, within(this.tape, candidate.tier, candidate.node))] : [];
    const point = (to) => { if (now) { this.pointed = to; this.draw(); } };
    const cells = [
      element("th", { scope: "row" }, node, " ", name, ...network),
      element("td", { class: "victims" }, this.victims(candidate)),
      element("td", { class: "words" }, this.tape.levels[candidate.level].name, candidate.below ? element("span", { class: "minus", title: below(candidate.below) }, ` −${candidate.below}`) : ""),
      ...(this.tape.network ? [element("td", {}, duration(candidate.wait_s).replace(" ", "\u00a0"))] : []),
      element("td", {}, candidate.discarded_gpu_h.toFixed(2)),
      element("td", {}, candidate.cost_gpu_h.toFixed(2)),
    ];
    if (this.side.scores) cells.push(element("td", {}, candidate.score === null ? "–" : candidate.score.toFixed(2)));
    const row = element("tr", { class: chosen ? "taken" : null, "aria-current": chosen ? "true" : null }, ...cells);
    row.addEventListener("pointerenter", () => point(i));
    row.addEventListener("pointerleave", () => point(null));
    node.addEventListener("focus", () => point(i));
    node.addEventListener("blur", () => point(null));
    return row;
  }

  victims({ victims, stopped }) {
    if (!victims.length) return "none";
    const { tape } = this, name = (pod) => `${tape.podName(pod)}\u00a0×${tape.pods.gpus[pod]}`;
    const listed = victims.slice(0, 3).map(name).join(", ");
    const rest = victims.length - 3 + stopped.length;
    const more = victims.length > 3 ? victims.length - 3 : 0;
    if (rest <= 0 || (!more && !stopped.length)) return listed;
    return listed + (more ? ` and ${more} more` : "") + (stopped.length ? ` (+${stopped.length} of the group)` : "");
  }

  waitRow(choice) {
    const chosen = choice.chosen === null;
    const name = element("th", { scope: "row", colspan: String(this.columns().length - 1) }, "do not preempt now ", chosen ? element("span", { class: "chosen" }, "taken") : "");
    return element("tr", { class: chosen ? "taken" : null, "aria-current": chosen ? "true" : null }, name, element("td", {}, choice.wait_score.toFixed(2)));
  }
}

function writeLegend(list, tape) {
  tape.scene.uses.forEach((use, i) => {
    const swatch = element("span", { class: `swatch ${use.mark}`, style: `background:var(--use-${i})`, "aria-hidden": "true" });
    list.append(element("li", {}, swatch, use.meaning));
  });
  if (tape.network) {
    list.append(element("li", {}, element("span", { class: "swatch gang", "aria-hidden": "true" }), "edge and number: one gang"));
    document.querySelector(".note").append(" A frame is a leaf; a gang is decided as a whole, and all of its places are framed.");
  }
  if (tape.sides.length > 1) {
    list.append(element("li", {}, element("span", { class: "swatch dot", "aria-hidden": "true" }), "held by another pod on the other side"));
  }
}
