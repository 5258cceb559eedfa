// Answers in words, made by keys; and which images are shown, in which order. Nothing of the page.

/* Returns the answer that says events with their phases: pairs are [event, phase]; "" is no phase. */
export function eventsText(pairs, format) {
  return FORMATS[format](pairs);
}

const together = pairs => {
  const phases = new Map();
  for (const [event, phase] of pairs) phases.set(event, [...phases.get(event) ?? [], phase]);
  return [...phases];
};
const list = names => names.length < 2 ? names.join('')
  : `${names.slice(0, -1).join(', ')} and ${names[names.length - 1]}`;
const article = name => `${/^[aeiou]/i.test(name) ? 'an' : 'a'} ${name}`;

const FORMATS = {
  pairs: pairs => pairs.length === 0 ? 'none'
    : pairs.map(([event, phase]) => phase ? `${event}: ${phase}` : event).join('; '),
  json: pairs => JSON.stringify(Object.fromEntries(together(pairs).map(([event, phases]) =>
    [event, phases.length > 1 ? phases : phases[0]]))),
  sentence: pairs => {
    if (pairs.length === 0) return 'No events are visible.';
    const parts = together(pairs).map(([event, phases]) =>
      phases[0] ? `${article(event)} in the ${list(phases)} phase` : article(event));
    return `I can see ${parts.join(', ')}, and no other events are visible.`;
  },
  words: pairs => pairs.length === 0 ? 'none' : [...new Set(pairs.map(([event]) => event))].join(', '),
};

/* Returns pairs with one more, or without it where it is there. */
export function togglePair(pairs, event, phase) {
  const others = pairs.filter(([name, when]) => name !== event || when !== phase);
  return others.length < pairs.length ? others : [...pairs, [event, phase]];
}

/* Returns counts as an import words them: indented by two, without zeros. */
export function countsText(counts, classes) {
  const kept = classes.filter(name => counts[name] > 0).map(name => [name, counts[name]]);
  return JSON.stringify(Object.fromEntries(kept), null, 2);
}

/* Returns the counts of an answer; {} where it holds none. */
export function readCounts(text) {
  try {
    const value = JSON.parse(text);
    const isCounts = value && typeof value === 'object' && !Array.isArray(value);
    return isCounts ? Object.fromEntries(Object.entries(value).filter(([, n]) => Number.isInteger(n))) : {};
  } catch {
    return {};
  }
}

/* Items are [key, name, status, by, revision, labels, text]. */
export const [KEY, NAME, STATUS, BY, REVISION, LABELS, TEXT] = [0, 1, 2, 3, 4, 5, 6];
export const [UNLABELLED, BEGUN, DONE] = [0, 1, 2];

/* Returns the items that fit: a status (or "any"), a labeller (or ""), words of name, labels, text. */
export function choose(items, {status, by, words}) {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  return items.filter(item => (status === 'any' || item[STATUS] === Number(status))
    && (by === '' || item[BY] === by)
    && wanted.every(word => `${item[NAME]} ${item[LABELS].join(' ')} ${item[TEXT]}`.toLowerCase().includes(word)));
}

const byName = new Intl.Collator('en', {numeric: true}).compare;

/* Returns items in an order: "data", "name", or by a number of each (doubt, disagreement), the
   highest first; those without a number come last. */
export function order(items, how, numbers = {}) {
  if (how === 'name') return [...items].sort((one, other) => byName(one[NAME], other[NAME]));
  if (how === 'data') return items;
  const value = item => numbers[item[KEY]]?.[how] ?? -Infinity;
  return items.map((item, place) => [item, place])
    .sort(([one, a], [other, b]) => {
      const [first, second] = [value(one), value(other)];
      return first === second ? a - b : second - first;
    })
    .map(([item]) => item);
}

/* Returns the place of the next item without a label, from a place on and around; -1: none. */
export function nextUnlabelled(shown, place, taken = new Set()) {
  for (let step = 1; step <= shown.length; step++) {
    const next = (place + step) % shown.length;
    if (shown[next][STATUS] !== DONE && !taken.has(shown[next][KEY])) return next;
  }
  return -1;
}

/* Returns how far the work is: {done, begun, total, people: [[name, count], ...]}. */
export function progress(items) {
  const people = new Map();
  let [done, begun] = [0, 0];
  for (const item of items) {
    done += item[STATUS] === DONE;
    begun += item[STATUS] === BEGUN;
    if (item[STATUS] === DONE && item[BY]) people.set(item[BY], (people.get(item[BY]) ?? 0) + 1);
  }
  return {done, begun, total: items.length, people: [...people].sort((a, b) => b[1] - a[1])};
}
