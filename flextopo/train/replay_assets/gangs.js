// Gangs in words: what they ask for, where they go, and what happens on each of their servers.

// Ascending numbers with runs drawn together, such as "2\u20134, 7".
function runs(numbers) {
  const sorted = [...new Set(numbers)].sort((a, b) => a - b), parts = [];
  for (let i = 0, j; i < sorted.length; i = j + 1) {
    j = i;
    while (sorted[j + 1] === sorted[j] + 1) j++;
    parts.push(j > i + 1 ? `${sorted[i]}\u2013${sorted[j]}` : sorted.slice(i, j + 1).join(", "));
  }
  return parts.join(", ");
}

// How many members ask for what, the larger first, such as "1 \u00d7 8 GPUs with 64 cores".
function memberSizes(tape, pods) {
  const sizes = new Map();
  for (const pod of pods) {
    const size = `${count(tape.pods.gpus[pod], "GPU")} with ${count(tape.pods.cores[pod], "core")}`;
    sizes.set(size, (sizes.get(size) ?? 0) + 1);
  }
  return [...sizes].map(([size, number]) => `${number} \u00d7 ${size}`).join(" and ");
}

function gangMembers(tape, pod) {
  const gang = tape.gangOf(pod);
  return tape.network.members.filter((other) => tape.pods.group[other] === gang);
}

function gangQuestion(tape, choice, waited) {
  const { pod } = choice, { pods, network } = tape, members = gangMembers(tape, pod);
  const least = pods.preferred_tier[pod], most = pods.required_tier[pod];
  const asks = ["no requirement", "best-effort", "guaranteed"][pods.requirement[pod]];
  const apart = least < most ? `, better ${network.tiers[least]}` : "";
  return `Gang ${tape.gangOf(pod)} (${tape.podName(pod)} and ${members.length - 1} more) fits nowhere as a whole${waited}: ` +
    `${memberSizes(tape, members)}, ${asks}, priority ${pods.priority[pod]}; at most over ${network.tiers[most]}${apart}.`;
}

// The part of the network that holds a gang.
function within(tape, tier, node) {
  const { network } = tape, leaf = network.leaf_names[network.leaf[node]], block = network.block_names[network.block[node]];
  return ["on one server", `within ${leaf} (${block})`, `within ${block}`, "across blocks of the cluster"][tier];
}

function gpuList(mask) {
  const gpus = [];
  for (let gpu = 0; mask >> gpu; gpu++) if ((mask >> gpu) & 1) gpus.push(gpu);
  return runs(gpus);
}

// A row for each server: the members and GPUs there, the alignment, and who stops.
function seatRows(tape, candidate) {
  const { victims, stopped, victim_nodes: nodes } = candidate, rows = new Map();
  const row = (node) => {
    if (!rows.has(node)) rows.set(node, { node, seats: [], victims: [], stopped: [] });
    return rows.get(node);
  };
  for (const [pod, node, mask, level, below] of candidate.seats) row(node).seats.push({ pod, mask, level, below });
  [...victims, ...stopped].forEach((pod, i) => row(nodes[i])[i < victims.length ? "victims" : "stopped"].push(pod));
  const hasSeat = ({ seats }) => (seats.length ? 0 : 1);
  return [...rows.values()].sort((a, b) => hasSeat(a) - hasSeat(b) || a.node - b.node);
}

function seatTable(tape, candidate, id) {
  const { network, levels, pods } = tape;
  const name = (pod) => `${tape.podName(pod)}\u00a0\u00d7${pods.gpus[pod]}`;
  const level = ({ level, below: missing }) => levels[level].name + (missing ? ` \u2212${missing}` : "");
  const rows = seatRows(tape, candidate).map(({ node, seats, victims, stopped }) => element("tr", {},
    element("th", { scope: "row" }, String(node)),
    element("td", { class: "words" }, network.leaf_names[network.leaf[node]]),
    element("td", { class: "words" }, seats.map(({ mask }) => gpuList(mask)).join("; ") || "\u2013"),
    element("td", { class: "words" }, seats.map(level).join("; ") || "\u2013"),
    element("td", { class: "victims" }, victims.map(name).join(", ") || "none"),
    element("td", { class: "victims" }, stopped.map(name).join(", ") || "none")));
  const head = ["server", "leaf", "GPUs", "level", "victims", "stop with their group"].map((text) => element("th", { scope: "col" }, text));
  const about = "Its servers; GPUs and level of each member";
  const table = element("table", { class: "seats", "aria-labelledby": id }, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
  return element("div", {}, element("p", { class: "about", id }, about), element("div", { class: "scroll", tabindex: "0", role: "group", "aria-labelledby": id }, table));
}
