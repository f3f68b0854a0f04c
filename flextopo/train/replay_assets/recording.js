// The data of the page: recordings, the moments of all of them in order, and the state at a frame.

const KEYFRAME = 256; // frames from one full copy of the state to the next

function runningSums(steps, width = 1) {
  const sums = new Float64Array(steps.length);
  for (let i = 0; i < steps.length; i++) sums[i] = steps[i] + (i >= width ? sums[i - width] : 0);
  return sums;
}

// The largest i with isBefore(i), where that holds up to some i and not after it.
function lastWhere(count, isBefore) {
  let low = -1, high = count;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (isBefore(middle)) low = middle; else high = middle;
  }
  return low;
}

class Recording {
  constructor(data, columns, numGpus, numTerms) {
    Object.assign(this, { name: data.name, scores: data.scores });
    const named = (row) => Object.fromEntries(row.map((value, i) => [columns[i], value]));
    this.choices = data.choices.map((choice) => ({ ...choice, shown: choice.shown.map(named) }));
    this.share = data.weighted_loss;
    this.time = runningSums(data.time_s);
    this.rank = data.rank;
    this.loss = runningSums(data.loss_gpu_s, numTerms);
    this.numTerms = numTerms;
    this.onlineWait = data.online_wait;
    this.batchWait = data.batch_wait;
    this.ends = runningSums(data.sizes);
    this.changes = Int32Array.from(data.changes);
    this.pods = new Int32Array(numGpus).fill(-1);
    this.uses = new Uint8Array(numGpus);
    this.frame = -1;
    this.keyframes = [];
    for (let f = 0; f < this.time.length; f++) {
      this.apply(f);
      if (f % KEYFRAME === 0) this.keyframes.push([this.pods.slice(), this.uses.slice()]);
    }
    this.seek(0);
  }

  apply(frame) {
    const { changes, pods, uses } = this;
    for (let i = 3 * (frame > 0 ? this.ends[frame - 1] : 0); i < 3 * this.ends[frame]; i += 3) {
      pods[changes[i]] = changes[i + 1];
      uses[changes[i]] = changes[i + 2];
    }
    this.frame = frame;
  }

  seek(frame) {
    const key = Math.floor(frame / KEYFRAME);
    if (frame < this.frame || key > Math.floor(this.frame / KEYFRAME)) {
      this.pods.set(this.keyframes[key][0]);
      this.uses.set(this.keyframes[key][1]);
      this.frame = key * KEYFRAME;
    }
    while (this.frame < frame) this.apply(this.frame + 1);
  }

  // Between two frames every loss grows evenly; at a decision it jumps.
  lossAt(frame, time) {
    const terms = [], n = this.numTerms, last = frame + 1 >= this.time.length;
    const span = last ? 0 : this.time[frame + 1] - this.time[frame];
    const part = span > 0 ? Math.min(1, (time - this.time[frame]) / span) : 0;
    for (let k = 0; k < n; k++) {
      const now = this.loss[frame * n + k];
      terms.push((now + (part ? part * (this.loss[(frame + 1) * n + k] - now) : 0)) / 3600);
    }
    return terms;
  }

  totalAt(frame) {
    let total = 0;
    for (let k = 0; k < this.numTerms; k++) total += this.loss[frame * this.numTerms + k];
    return total / 3600;
  }

  // The number of the decision at a frame, or of the last one before it; -1 = none yet.
  choiceAt(frame) {
    return lastWhere(this.choices.length, (i) => this.choices[i].frame <= frame);
  }
}

class Tape {
  constructor(data) {
    Object.assign(this, { end: data.end_s, terms: data.terms, scene: data.scene });
    this.demanded = data.demanded_gpu_s / 3600;
    this.pods = data.pods;
    this.models = data.models;
    this.levels = data.levels;
    this.network = data.network ?? null;
    this.members = new Set(this.network ? this.network.members : []);
    this.first = [0];
    for (const model of this.scene.node_model) {
      this.first.push(this.first.at(-1) + this.scene.tiles[model].gpus.length);
    }
    this.numGpus = this.first.at(-1);
    this.numNodes = this.scene.node_model.length;
    this.sides = data.sides.map((side) => new Recording(side, data.shown_columns, this.numGpus, data.terms.length));
    this.mergeMoments();
    const moment = (time, rank) => this.momentAt(time, rank);
    this.differences = data.differences.map(([t, r, about]) => ({ moment: moment(t, r), about }));
    const decisions = new Set();
    for (const side of this.sides) {
      for (const { frame } of side.choices) decisions.add(moment(side.time[frame], side.rank[frame]));
    }
    this.decisions = [...decisions].sort((a, b) => a - b);
  }

  // A moment is a time and a place in the scheduling order; each side shows its last frame by then.
  mergeMoments() {
    const next = this.sides.map(() => 0);
    this.times = [];
    this.ranks = [];
    this.frames = [];
    for (;;) {
      let time = Infinity, rank = Infinity;
      this.sides.forEach((side, s) => {
        if (next[s] >= side.time.length) return;
        const [t, r] = [side.time[next[s]], side.rank[next[s]]];
        if (t < time || (t === time && r < rank)) [time, rank] = [t, r];
      });
      if (time === Infinity) return;
      this.sides.forEach((side, s) => {
        if (side.time[next[s]] === time && side.rank[next[s]] === rank) next[s]++;
      });
      this.times.push(time);
      this.ranks.push(rank);
      this.frames.push(next.map((n) => Math.max(0, n - 1)));
    }
  }

  momentAt(time, rank) {
    const { times, ranks } = this;
    const isBefore = (i) => times[i] < time || (times[i] === time && ranks[i] <= rank);
    return Math.max(0, lastWhere(times.length, isBefore));
  }

  nodeOf(gpu) {
    return lastWhere(this.first.length, (node) => this.first[node] <= gpu);
  }

  // The number of the gang that a pod belongs to, -1 = none.
  gangOf(pod) {
    return this.members.has(pod) ? this.pods.group[pod] : -1;
  }

  podName(pod) {
    return `${this.pods.online[pod] ? "online" : "batch"}/${pod}`;
  }

  // What a pod asks for and, unless that is left out, whether it is ever a victim.
  describePod(pod, withEviction = true) {
    const { gpus, cores, online, requirement, batch_class, checkpoint_s, preemptible } = this.pods;
    const parts = [count(gpus[pod], "GPU"), count(cores[pod], "core")];
    if (online[pod]) parts.push(["no requirement", "best-effort", "guaranteed"][requirement[pod]]);
    else parts.push(batch_class[pod] ? "middle class" : "low class");
    parts.push(`priority ${this.pods.priority[pod]}`);
    if (!online[pod]) {
      const every = checkpoint_s[pod];
      parts.push(every ? `checkpoint every ${every / 60} min` : "no checkpoints");
    }
    if (this.gangOf(pod) >= 0) parts.push(`gang ${this.gangOf(pod)}`);
    else if (this.pods.group[pod] >= 0) parts.push(`PodGroup ${this.pods.group[pod]}`);
    if (this.pods.pdb[pod] >= 0) parts.push("disruption budget");
    if (withEviction && !preemptible[pod]) parts.push("never a victim");
    return parts.join(", ");
  }
}

function count(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

function clock(time) {
  const day = Math.floor(time / 86400), s = Math.floor(time % 86400);
  const two = (x) => String(x).padStart(2, "0");
  const hours = `${two(Math.floor(s / 3600))}:${two(Math.floor(s / 60) % 60)}:${two(s % 60)}`;
  return day > 0 ? `day ${day}, ${hours}` : hours;
}

function duration(seconds) {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}
