// The player: where the page stands in time, what moves it, and the keys.

class Player {
  constructor(tape) {
    this.tape = tape;
    this.moment = 0;
    this.time = 0;
    this.playing = false;
    this.panels = tape.sides.map((_, i) => new Panel(tape, i));
    const main = document.getElementById("sides");
    main.classList.toggle("alone", tape.sides.length === 1);
    main.append(...this.panels.map((panel) => panel.section));
    this.panels.forEach((panel) => panel.attach());
    this.timeline = new Timeline(byId("strip"), tape, (time) => this.setTime(time));
    writeLegend(byId("legend"), tape);
    this.slider = byId("time");
    this.slider.max = tape.end;
    this.wire();
    this.show(true);
  }

  wire() {
    const { tape } = this;
    const click = (id, act) => byId(id).addEventListener("click", act);
    click("play", () => this.toggle());
    click("previous-decision", () => this.jump(tape.decisions, -1));
    click("next-decision", () => this.jump(tape.decisions, 1));
    const moments = tape.differences.map(({ moment }) => moment);
    click("previous-difference", () => this.jump(moments, -1));
    click("next-difference", () => this.jump(moments, 1));
    byId("previous-difference").parentElement.hidden = moments.length === 0;
    byId("difference-keys").hidden = moments.length === 0;
    this.slider.addEventListener("input", () => this.setTime(Number(this.slider.value)));
    document.addEventListener("keydown", (event) => this.key(event));
    window.addEventListener("resize", () => this.resize());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.resize());
  }

  resize() {
    this.timeline.resize();
    this.panels.forEach((panel) => panel.drawing.resize());
    this.show(true);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const on = event.target, typed = on.tagName === "SELECT" || on.tagName === "SUMMARY";
    const click = (id) => byId(id).click();
    const acts = {
      ArrowLeft: () => click("previous-decision"),
      ArrowRight: () => click("next-decision"),
      p: () => click("previous-difference"),
      n: () => click("next-difference"),
      ",": () => this.goTo(Math.max(0, this.moment - 1)),
      ".": () => this.goTo(Math.min(this.tape.times.length - 1, this.moment + 1)),
      Home: () => this.goTo(0),
      End: () => this.goTo(this.tape.times.length - 1),
      "-": () => this.changeSpeed(-1),
      "+": () => this.changeSpeed(1),
      "=": () => this.changeSpeed(1),
    };
    // A focused button answers to the space key by itself.
    if (!typed && on.tagName !== "BUTTON") acts[" "] = () => this.toggle();
    if (typed && event.key.startsWith("Arrow")) return;
    const act = acts[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }

  changeSpeed(by) {
    const speed = byId("speed");
    const to = speed.selectedIndex + by;
    speed.selectedIndex = Math.max(0, Math.min(speed.length - 1, to));
  }

  toggle() {
    this.playing = !this.playing;
    byId("play").textContent = this.playing ? "Pause" : "Play";
    if (!this.playing) return;
    if (this.time >= this.tape.end) this.goTo(0, true);
    this.last = null;
    requestAnimationFrame((now) => this.tick(now));
  }

  tick(now) {
    if (!this.playing) return;
    const passed = this.last === null ? 0 : Math.min(250, now - this.last) / 1000;
    this.last = now;
    this.setTime(Math.min(this.tape.end, this.time + passed * Number(byId("speed").value)));
    if (this.time >= this.tape.end) this.toggle();
    else requestAnimationFrame((next) => this.tick(next));
  }

  // The next or previous of some moments; the player stops there.
  jump(moments, direction) {
    const at = direction > 0 ? moments.find((m) => m > this.moment) : moments.findLast((m) => m < this.moment);
    if (at !== undefined) this.goTo(at);
  }

  goTo(moment, play = false) {
    if (this.playing && !play) this.toggle();
    this.moment = moment;
    this.time = this.tape.times[moment];
    this.show(true);
  }

  setTime(time) {
    const before = this.moment;
    this.time = time;
    this.moment = this.tape.momentAt(time, Infinity);
    this.show(before !== this.moment);
  }

  show(redraw) {
    const { tape, time, moment } = this;
    const frames = tape.frames[moment];
    tape.sides.forEach((side, s) => side.seek(frames[s]));
    this.panels.forEach((panel, s) => panel.show(frames[s], time, redraw));
    this.timeline.draw(time);
    this.slider.value = time;
    this.slider.setAttribute("aria-valuetext", clock(time));
    byId("clock").textContent = clock(time);
    if (redraw) this.writeStatus();
  }

  writeStatus() {
    const { tape, moment } = this;
    const d = tape.differences, at = lastWhere(d.length, (i) => d[i].moment <= moment);
    const where = at < 0 ? `0 of ${d.length}` : `${at + 1} of ${d.length}: ${d[at].about}`;
    let text = tape.sides.length < 2 ? "" : d.length ? `difference ${where}` : "the two never differ";
    if (at >= 0 && d[at].moment !== moment) text = text.replace("difference", "past difference");
    const status = byId("status");
    if (status.textContent !== text) status.textContent = text;
    status.classList.toggle("here", at >= 0 && d[at].moment === moment);
  }
}

function byId(id) {
  return document.getElementById(id);
}

new Player(new Tape(JSON.parse(byId("recording").textContent)));
