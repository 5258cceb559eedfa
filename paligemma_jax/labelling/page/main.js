// The page: what is shown, what keys and buttons do, and what is saved.

import * as answers from './answers.js';
import {boxPolygon, moveObject} from './geometry.js';
import {Panel} from './panel.js';
import {Many} from './many.js';
import {ItemList} from './list.js';
import {Ahead, Saver, get, post, upload} from './remote.js';
import {Stage, TOOLS} from './stage.js';

const {KEY, STATUS, REVISION, UNLABELLED, DONE, BY, NAME} = answers;
const one = selector => document.querySelector(selector);
const POLL_MS = 1500;
const NUM_AHEAD = 4;

const page = {state: null, items: new Map(), shown: [], place: -1, item: null, mark: 0, others: {},
  asked: {status: 'any', by: '', words: ''}, order: 'data', isTouched: false, conflicts: []};
const ahead = new Ahead();
let by = localStorage.getItem('labeller') ?? '';

const saver = new Saver(
  (saved, isLast) => {
    take([saved.summary]);
    if (isLast) ahead.put(saved.summary[KEY], saved);
    if (page.item?.summary[KEY] === saved.summary[KEY] && isLast) {
      Object.assign(page.item, {about: saved.about, summary: saved.summary, reads: saved.reads,
        suffix: saved.suffix, prefix: saved.prefix});
      panel.showReads(saved.reads);
      if (!panel.isTyping) panel.showTexts(page.item);
      problem('');
    }
    steps(saved.steps);
  },
  (failure, body) => {
    if (failure.status === 409) {
      page.conflicts.push([failure, body]);
      askConflict();
    } else problem(`${nameOf(body.key)}: not saved: ${failure.message}`);
  },
  () => showState());

const stage = new Stage(one('#stage'), {
  change(objects, selected) {
    page.item.objects = objects.map(fitTask);
    stage.selected = selected;
    edited();
  },
  select() { showObjects(); },
  accept(number) {
    const {score, ...object} = stage.proposed[number];
    page.item.objects = [...page.item.objects, object];
    page.item.leftOut = [...page.item.leftOut ?? [], JSON.stringify(object)];
    stage.selected = page.item.objects.length - 1;
    edited();
  },
  newObject() {
    const label = page.label ?? page.state.settings.classes[0];
    if (!label) problem('No class yet: add one in Settings.');
    return {label};
  },
});
const panel = new Panel({
  text(text, isDone) { saveText(text, isDone); },
  prefix(prefix) { page.item.prefix = prefix; page.item.hasOwnPrefix = true; page.isTouched = true; },
  label(label) { setLabel(label); },
  pick(number) { stage.select(number); },
  problem,
});
const list = new ItemList(one('#list'), place => open(place));
const many = new Many({
  post, take,
  by: () => by,
  shown: () => page.shown,
  open(key) { showMany(false); openKey(key); },
  problem,
  steps,
});

const nameOf = key => page.items.get(key)?.[NAME] ?? key;
const drawsBoxes = () => ['boxes', 'masks', 'counts'].includes(page.state.answer);

/* A mask task has no boxes without an outline: one that is drawn becomes a polygon. */
function fitTask(object) {
  const isBare = page.state.answer === 'masks' && !object.segmentation;
  return isBare ? {...object, segmentation: [boxPolygon(object.box)]} : object;
}

/* Items that changed, by whoever. */
function take(summaries) {
  for (const summary of summaries) {
    const before = page.items.get(summary[KEY]);
    if (before && before[REVISION] > summary[REVISION]) continue;
    page.items.set(summary[KEY], summary);
    const place = page.shown.findIndex(item => item[KEY] === summary[KEY]);
    if (place >= 0) page.shown[place] = summary;
    if (before && before[REVISION] < summary[REVISION] && summary[BY] !== by) ahead.forget(summary[KEY]);
  }
  list.show(page.shown, page.place);
  showProgress();
}

function showProgress() {
  const {done, begun, total, people} = answers.progress([...page.items.values()]);
  one('#progress progress').value = total ? done / total : 0;
  const parts = [`${done.toLocaleString('en')} of ${total.toLocaleString('en')} done`];
  if (begun) parts.push(`${begun} begun`);
  if (people.length > 1) parts.push(people.slice(0, 4).map(([name, count]) => `${name} ${count}`).join(', '));
  one('#progress span').textContent = parts.join(' · ');
  const select = one('#by');
  const names = people.map(([name]) => name);
  if (names.join('\n') !== select.dataset.names) {
    select.replaceChildren(new Option('by anybody', ''), ...names.map(name => new Option(`by ${name}`, name)));
    select.value = page.asked.by;
    select.dataset.names = names.join('\n');
  }
}

function showState(text) {
  const state = one('#state');
  const isWaiting = !saver.isIdle;
  state.className = text ? 'bad' : isWaiting ? 'waiting' : '';
  state.textContent = text ?? (isWaiting ? 'saving' : 'saved');
}

function problem(text) {
  one('#problem').hidden = !text;
  one('#problem').textContent = text;
}

function steps([undo, redo] = [0, 0]) {
  one('#undo').disabled = undo === 0;
  one('#redo').disabled = redo === 0;
}

/* Which image. */

function choose() {
  const key = page.item?.summary[KEY] ?? page.shown[page.place]?.[KEY];
  const fitting = answers.choose([...page.items.values()], page.asked);
  page.shown = [...answers.order(fitting, page.order, page.numbers)];
  page.place = page.shown.findIndex(item => item[KEY] === key);
  one('#shown').textContent = `${page.shown.length.toLocaleString('en')} shown`;
  list.show(page.shown, page.place);
}

async function open(place, isShown = true) {
  if (!page.shown.length) return;
  const start = performance.now();
  page.place = (place + page.shown.length) % page.shown.length;
  const key = page.shown[page.place][KEY];
  page.opening = key;
  panel.leave();
  list.show(page.shown, page.place, isShown);
  const image = ahead.image(key);
  let item;
  try {
    if (saver.isPending(key)) await saver.idle();
    item = await ahead.item(key);
  } catch (failure) {
    problem(`${nameOf(key)}: ${failure.message}`);
    return;
  }
  if (page.opening !== key) return;
  saver.know(key, item.summary[REVISION]);
  page.item = structuredClone(item);
  page.isTouched = false;
  stage.show(image, item.width, item.height);
  showItem();
  problem(item.problem ?? '');
  requestAnimationFrame(() => setTimeout(() => {
    document.body.dataset.shown = key;
    document.body.dataset.shownMs = (performance.now() - start).toFixed(1);
  }));
  ahead.fetch(nearby());
}

const openKey = key => {
  if (!page.shown.some(item => item[KEY] === key)) {
    Object.assign(page.asked, {status: 'any', by: '', words: ''});
    for (const [id, value] of Object.entries(page.asked)) one(`#${id}`).value = value;
    choose();
  }
  return open(page.shown.findIndex(item => item[KEY] === key));
};

const taken = () => new Set(Object.values(page.others));

function nearby() {
  const keys = [];
  for (let step = 1; step <= NUM_AHEAD; step++) keys.push(page.shown[(page.place + step) % page.shown.length][KEY]);
  keys.push(page.shown[(page.place - 1 + page.shown.length) % page.shown.length][KEY]);
  let next = page.place;
  for (let step = 0; step < 2; step++) {
    next = answers.nextUnlabelled(page.shown, next, taken());
    if (next >= 0) keys.push(page.shown[next][KEY]);
  }
  return [...new Set(keys)];
}

function openUnlabelled() {
  const next = answers.nextUnlabelled(page.shown, page.place, taken());
  if (next >= 0 && next !== page.place) return open(next);
  if (next < 0) problem('Every image that is shown has a label.');
}

/* What an image holds. */

function proposed() {
  const {proposal, leftOut = []} = page.item;
  if (!proposal || page.item.isDismissed || page.item.summary[STATUS] === DONE) return [];
  return (proposal.objects ?? []).filter(({score, ...object}) =>
    (score ?? 1) >= panel.least && !leftOut.includes(JSON.stringify(object)));
}

const isProposed = () => Boolean(page.item.proposal) && !page.item.isDismissed && !page.isTouched
  && page.item.summary[STATUS] === UNLABELLED;

function showItem() {
  const {item} = page;
  one('#work').classList.toggle('texts-only', !drawsBoxes());
  stage.isReadOnly = !item.objects;
  stage.element.classList.toggle('plain', stage.isReadOnly);
  stage.setObjects(item.objects ?? [], proposed());
  showObjects();
  panel.showItem(item, isProposed());
  one('#where').textContent = `${page.place + 1} of ${page.shown.length}: ${item.summary[NAME]}`
    + (item.about.by ? ` · ${item.about.by}, ${item.about.at.replace('T', ' ').replace('Z', ' UTC')}` : '')
    + (page.others && Object.entries(page.others).some(([, key]) => key === item.summary[KEY]) ? ' · somebody else is here' : '');
}

function showObjects() {
  panel.showObjects(page.item?.objects ?? [], stage.selected);
}

/* A change of objects, kept at once. */
function edited() {
  page.isTouched = true;
  stage.setObjects(page.item.objects, proposed());
  showObjects();
  save(page.item.summary[STATUS] === DONE);
}

function save(isDone, more = {}) {
  const {item} = page;
  const key = item.summary[KEY];
  const body = {key, by, revision: item.summary[REVISION], done: isDone,
    prefix: item.hasOwnPrefix ? item.prefix : null, ...more};
  if (!('text' in more)) body.objects = item.objects ?? [];
  ahead.forget(key);
  saver.add(body);
  showState();
  problem('');
}

function saveText(text, isDone) {
  page.isTouched = true;
  save(isDone, {text, prefix: panel.prefix});
  if (isDone) openUnlabelled();
}

/* The image is done: what is seen is what is kept; a proposal that nobody touched is taken whole. */
function done() {
  if (stage.points.length > 2) return stage.closePolygon();
  const {item} = page;
  if (!item) return;
  if (item.objects === null || panel.hasOwnText) {
    const text = isProposed() && !panel.text.trim() ? item.proposal.text : panel.text;
    save(true, {text, prefix: panel.prefix});
  } else {
    if (isProposed()) item.objects = proposed().map(({score, ...object}) => fitTask(object));
    save(true);
  }
  return openUnlabelled();
}

function nothing() {
  if (!page.item.objects) return panel.setEvents([]);
  page.item.objects = [];
  if (page.state.answer === 'counts') save(true, {text: '{}'});
  else save(true);
  return openUnlabelled();
}

function dismiss() {
  page.item.isDismissed = true;
  stage.setObjects(page.item.objects ?? [], []);
  panel.showProposal(null);
}

function setLabel(label) {
  page.label = label;
  panel.showClasses(label);
  if (stage.selected < 0) return;
  page.item.objects = page.item.objects.map((object, number) =>
    number === stage.selected ? {...object, label} : object);
  edited();
}

function remove() {
  if (stage.selected < 0) return;
  page.item.objects = page.item.objects.filter((_, number) => number !== stage.selected);
  stage.selected = -1;
  edited();
}

async function copyBefore() {
  const before = page.shown[page.place - 1];
  if (!before || !page.item.objects) return;
  const {objects, width, height} = await ahead.item(before[KEY]);
  if (!objects?.length || width !== page.item.width || height !== page.item.height)
    return problem('The image before has no objects, or another size.');
  page.item.objects = [...page.item.objects, ...objects];
  edited();
}

async function step(path) {
  if (path === 'undo' && stage.back()) return;
  await saver.idle();
  try {
    const changed = await post(path, {by});
    for (const key of changed.keys) ahead.forget(key);
    take(changed.items);
    steps(changed.steps);
    if (changed.keys.length) await openKey(changed.keys[0]);
  } catch (failure) {
    problem(failure.message);
  }
}

/* Two people changed one image. */

const inWords = item => [item.prefix, '', item.suffix ?? '(nothing yet)'].join('\n');

function askConflict() {
  if (one('#conflict').open || !page.conflicts.length) return;
  const [failure, body] = page.conflicts[0];
  const [theirs] = failure.items;
  one('#conflict h2').textContent = failure.message;
  const mine = body.text ?? (body.objects ?? []).map(({label, box}) => `${label}  ${box.join(' ')}`).join('\n');
  one('#mine').textContent = mine || '(nothing)';
  one('#theirs-by').textContent = `${theirs.about.by ?? 'theirs'}`;
  one('#theirs').textContent = theirs.objects
    ? theirs.objects.map(({label, box}) => `${label}  ${box.join(' ')}`).join('\n') || '(nothing)' : inWords(theirs);
  one('#conflict').showModal();
}

function settleConflict(keepsMine) {
  const [failure, body] = page.conflicts.shift();
  const [theirs] = failure.items;
  one('#conflict').close();
  take([theirs.summary]);
  saver.revisions.set(body.key, theirs.summary[REVISION]);
  ahead.put(body.key, theirs);
  if (keepsMine) saver.add({...body, revision: theirs.summary[REVISION]});
  else if (page.item.summary[KEY] === body.key) openKey(body.key);
  askConflict();
}

/* What others do meanwhile, and how the models are. */
async function poll() {
  try {
    const at = page.item?.summary[KEY] ?? '';
    const changed = await get('changes', {since: page.mark, by, at});
    page.mark = changed.mark;
    page.others = changed.others;
    const current = changed.items.find(item => item[KEY] === at);
    take(changed.items);
    steps(changed.steps);
    if (JSON.stringify(changed.settings) !== JSON.stringify(page.state.settings)) await start();
    const isNew = current && current[REVISION] > page.item.summary[REVISION] && saver.isIdle;
    if (isNew && !page.isTouched) await openKey(at);
    showModel(changed.model);
    showState(changed.write_error ?? undefined);
  } catch (failure) {
    showState(failure.status === 401 ? failure.message : 'the server does not answer');
  }
  setTimeout(poll, POLL_MS);
}

function showModel(model) {
  one('#model').textContent = model?.text ?? '';
  one('#train').hidden = !model?.can_train;
  one('#train').disabled = Boolean(model?.is_training);
  const orders = model?.orders ?? [];
  const select = one('#order');
  for (const [value, text] of orders)
    if (![...select.options].some(option => option.value === value)) select.add(new Option(text, value));
  if (model && model.answered !== page.answered) {
    page.answered = model.answered;
    ahead.items.clear();
    if (page.item && !page.item.proposal && !page.isTouched && page.item.summary[STATUS] !== DONE && !panel.isTyping)
      ahead.item(page.item.summary[KEY]).then(item => {
        if (!item.proposal || page.isTouched || page.item.summary[KEY] !== item.summary[KEY]) return;
        page.item.proposal = item.proposal;
        showItem();
      }, () => {});
    ahead.fetch(nearby());
  }
}

function setTool(tool) {
  stage.tool = tool;
  stage.points = [];
  for (const button of document.querySelectorAll('[data-tool]'))
    button.setAttribute('aria-pressed', button.dataset.tool === tool);
  stage.redraw();
}

function setEraser(isOn) {
  stage.erases = isOn;
  one('#eraser').setAttribute('aria-pressed', isOn);
  if (isOn) setTool('brush');
}

function showMany(isShown) {
  one('#many').hidden = !isShown;
  if (isShown) many.show(page.state);
}

/* Keys. */

const NUDGES = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
const KEYS = [
  ['Enter', 'done, and on to the next without a label; takes a proposal as it is'],
  ['1 to 9', 'class; with words: a phase of the event, or an answer'],
  ['a, b, c, ...', 'an event, where questions are asked'],
  ['b, p, m, v', 'box, polygon, mask (brush), select'],
  ['e, [ and ]', 'eraser; size of the brush'],
  ['Delete', 'remove what is selected; Backspace takes back a point of a polygon'],
  ['Tab', 'select the next object'],
  ['arrows', 'next image and the one before; with Alt: move what is selected, with Shift too: by 10 px'],
  ['0', 'nothing here'], ['x', 'leave out what is proposed'], ['c', 'objects as in the image before'],
  ['n', 'next without a label'], ['i', 'write the answer'], ['/', 'look for words'],
  ['f, + and −', 'fit, larger, smaller; Space and drag moves the picture'],
  ['g', 'many images at once'], ['Ctrl+Z, Ctrl+Y', 'undo, redo'], ['Escape', 'leave a field, stop drawing'],
];

function nudge(event) {
  const object = page.item?.objects?.[stage.selected];
  if (!event.altKey || !object) return false;
  const [dx, dy] = NUDGES[event.key].map(value => value * (event.shiftKey ? 10 : 1));
  const moved = moveObject(object, dx, dy, stage.width, stage.height);
  page.item.objects = page.item.objects.map((kept, number) => number === stage.selected ? moved : kept);
  edited();
  return true;
}

const PLAIN = {
  Enter: () => done(), Escape: () => { stage.cancel(); stage.select(-1); },
  Delete: () => remove(), Backspace: () => stage.back() || panel.backspace() || remove(),
  ArrowLeft: () => open(page.place - 1), ArrowRight: () => open(page.place + 1),
  ArrowUp: () => open(page.place - 1), ArrowDown: () => open(page.place + 1),
  0: () => nothing(), n: () => openUnlabelled(), x: () => dismiss(), g: () => showMany(true),
  f: () => stage.fit(), '+': () => stage.zoom(1.25), '=': () => stage.zoom(1.25), '-': () => stage.zoom(0.8),
  i: () => panel.focus(), '/': () => one('#words').focus(), '?': () => one('#key-list').showModal(),
};
const DRAWING = {
  v: () => setTool('select'), b: () => setTool('box'), p: () => setTool('polygon'), m: () => setTool('brush'),
  e: () => setEraser(!stage.erases), c: () => copyBefore(),
  '[': () => setRadius(stage.radius / 1.25), ']': () => setRadius(stage.radius * 1.25),
  Tab: () => stage.select(page.item.objects.length ? (stage.selected + 1) % page.item.objects.length : -1),
};

function setRadius(radius) {
  stage.radius = Math.min(Math.max(radius, 1), 200);
  one('#radius').value = stage.radius;
  stage.redraw();
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey) {
    const path = {z: event.shiftKey ? 'redo' : 'undo', y: 'redo'}[event.key.toLowerCase()];
    if (path && !isField(event.target)) {
      event.preventDefault();
      step(path);
    }
    return;
  }
  if (document.querySelector('dialog[open]') || !page.item) return;
  if (isField(event.target)) return onKeyInField(event);
  if (event.key === ' ') {
    stage.isPanning = event.target.tagName !== 'BUTTON';
    if (stage.isPanning) event.preventDefault();
    return;
  }
  if (event.key === 'Enter' && event.target.closest('button, a, summary')) return;
  if (NUDGES[event.key] && nudge(event)) return event.preventDefault();
  if (event.altKey) return;
  const digit = /^Digit([0-9])$/.exec(event.code)?.[1];
  const isDrawing = Boolean(page.item.objects);
  if (panel.onKey(event, digit)) return event.preventDefault();
  const name = page.state.settings.classes[digit - 1];
  const action = digit > 0 && isDrawing && name ? () => setLabel(name)
    : (isDrawing ? DRAWING[event.key] : undefined) ?? PLAIN[digit === '0' ? 0 : event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

const isField = element => element.matches?.('input:not([type=range]), textarea, select');

function onKeyInField(event) {
  if (event.key === 'Escape') return event.target.blur();
  if (event.key !== 'Enter' || event.shiftKey || !['answer', 'prefix'].includes(event.target.id)) return;
  event.preventDefault();
  event.target.blur();
  done();
}

/* The beginning. */

async function start() {
  page.state = await get('state');
  const {state} = page;
  document.title = `${state.name}: label`;
  one('#name').textContent = state.name;
  page.items = new Map(state.items.map(item => [item[KEY], item]));
  page.mark = Math.max(page.mark, state.mark);
  ahead.items.clear();
  stage.classes = state.settings.classes;
  page.label = state.settings.classes.includes(page.label) ? page.label : state.settings.classes[0];
  panel.setState(state);
  panel.showClasses(page.label);
  one('#tools').hidden = !drawsBoxes();
  showProgress();
  choose();
  showModel(state.model);
}

function bind() {
  const clicks = {undo: () => step('undo'), redo: () => step('redo'), previous: () => open(page.place - 1),
    next: () => open(page.place + 1), done, nothing, unlabelled: openUnlabelled, remove, copy: copyBefore,
    fit: () => stage.fit(), larger: () => stage.zoom(1.25), smaller: () => stage.zoom(0.8),
    grid: () => showMany(true), leave: () => showMany(false), accept: done, dismiss,
    eraser: () => setEraser(!stage.erases), keys: () => one('#key-list').showModal(),
    check: showFindings, settings: () => panel.openSettings(page.state), 'save-settings': saveSettings,
    'keep-mine': () => settleConflict(true), 'take-theirs': () => settleConflict(false),
    who: askName, another: anotherQuestion, train: () => post('train', {by}).catch(failure => problem(failure.message))};
  for (const [id, action] of Object.entries(clicks)) one(`#${id}`).onclick = action;
  for (const button of document.querySelectorAll('[data-tool]')) button.onclick = () => setTool(button.dataset.tool);
  one('#radius').oninput = event => setRadius(Number(event.target.value));
  one('#confidence').oninput = event => {
    panel.least = Number(event.target.value);
    one('#least').textContent = panel.least.toFixed(2);
    if (page.item) stage.setObjects(page.item.objects ?? [], proposed());
  };
  for (const id of ['status', 'by', 'words']) one(`#${id}`).oninput = event => {
    page.asked[id] = event.target.value;
    choose();
  };
  one('#order').onchange = async event => {
    page.order = event.target.value;
    if (!['data', 'name'].includes(page.order)) page.numbers = (await get('numbers')).numbers;
    choose();
    const next = answers.nextUnlabelled(page.shown, -1, taken());
    if (next >= 0) open(next);
  };
  one('#words').onkeydown = event => {
    if (event.key !== 'Enter' || !page.shown.length) return;
    event.target.blur();
    open(0);
  };
  window.addEventListener('keydown', event => one('#many').hidden ? onKey(event) : many.onKey(event, () => showMany(false), () => step('undo')));
  window.addEventListener('keyup', event => { if (event.key === ' ') stage.isPanning = false; });
  window.addEventListener('beforeunload', event => { if (!saver.isIdle) event.preventDefault(); });
  window.addEventListener('dragover', event => event.preventDefault());
  window.addEventListener('drop', event => { event.preventDefault(); addFiles(event.dataTransfer.files); });
  one('#key-list table').replaceChildren(...KEYS.map(([key, what]) => {
    const row = document.createElement('tr');
    const [first, second] = [document.createElement('td'), document.createElement('td')];
    first.append(Object.assign(document.createElement('kbd'), {textContent: key}));
    second.textContent = what;
    row.append(first, second);
    return row;
  }));
  for (const tool of TOOLS) if (tool === stage.tool) setTool(tool);
}

async function addFiles(files) {
  for (const file of files) {
    try {
      const {summary} = await upload(file);
      take([summary]);
      choose();
    } catch (failure) {
      problem(failure.message);
    }
  }
}

async function anotherQuestion() {
  const added = await post('add', {by, key: page.item.summary[KEY]});
  take([added.summary]);
  ahead.put(added.summary[KEY], added);
  choose();
  await openKey(added.summary[KEY]);
  panel.focusPrefix();
}

async function saveSettings() {
  try {
    await post('settings', {by, settings: panel.readSettings()});
    one('#settings-form').close();
    const key = page.item?.summary[KEY];
    await start();
    if (key) await openKey(key);
  } catch (failure) {
    one('#settings-problem').textContent = failure.message;
  }
}

async function showFindings() {
  await saver.idle();
  const {findings} = await get('check');
  panel.showFindings(findings, key => { one('#findings').close(); openKey(key); }, nameOf);
}

function askName() {
  const dialog = one('#ask-name');
  one('#your-name').value = by;
  dialog.returnValue = '';
  dialog.onclose = () => {
    const name = one('#your-name').value.trim().replace(/\s+/g, ' ');
    if (!name) return askName();
    by = name;
    localStorage.setItem('labeller', by);
    one('#who').textContent = by;
    if (!page.isPolling) poll();
    page.isPolling = true;
  };
  dialog.showModal();
}

bind();
await start();
one('#who').textContent = by || 'name';
const first = answers.nextUnlabelled(page.shown, -1);
await open(first < 0 ? 0 : first);
if (by) {
  page.isPolling = true;
  poll();
} else askName();
