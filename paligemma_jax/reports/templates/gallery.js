const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
const one = selector => document.querySelector(selector);
const cards = all('.card');
const grid = one('.cards');
const sides = {truth: one('select[data-side=truth]'), prediction: one('select[data-side=prediction]')};
const answers = new Map(cards.map(card =>
  [card, all('[data-answer]', card).map(text => text.textContent).join('\n').toLowerCase()]));
let wanted = 'all';

/* Which examples: a flag, a class of the truth or of the prediction, words of the answers. */
function choose() {
  const words = one('#search').value.toLowerCase().split(/\s+/).filter(Boolean);
  const truth = sides.truth ? sides.truth.value : '';
  const prediction = sides.prediction ? sides.prediction.value : '';
  const inCell = cell => {
    const [first, second] = cell.split(':');
    return (truth === '' || first === truth) && (prediction === '' || second === prediction);
  };
  let count = 0;
  for (const card of cards) {
    const fits = wanted === 'all' || card.dataset.flags.split(' ').includes(wanted);
    const isOfClass = truth + prediction === '' || card.dataset.cells.split(' ').some(inCell);
    card.hidden = !fits || !isOfClass || !words.every(word => answers.get(card).includes(word));
    count += !card.hidden;
  }
  for (const button of all('button[data-filter]'))
    button.setAttribute('aria-pressed', button.dataset.filter === wanted);
  for (const button of all('button[data-cell]'))
    button.setAttribute('aria-pressed', button.dataset.cell === `${truth}:${prediction}`);
  one('#count').textContent = `${count} shown`;
  one('#nothing').hidden = count > 0 || cards.length === 0;
  one('#reset').hidden = wanted === 'all' && truth + prediction === '' && !words.length;
}
for (const button of all('button[data-filter]'))
  button.onclick = () => { wanted = button.dataset.filter; choose(); };
for (const select of Object.values(sides)) if (select) select.onchange = choose;
for (const button of all('button[data-cell]'))
  button.onclick = () => {
    const isChosen = button.getAttribute('aria-pressed') === 'true';
    const cell = isChosen ? ['', ''] : button.dataset.cell.split(':');
    [sides.truth.value, sides.prediction.value] = cell;
    wanted = 'all';
    choose();
    if (!isChosen) one('#examples').scrollIntoView();
  };
one('#search').oninput = choose;
one('#reset').onclick = () => {
  wanted = 'all';
  one('#search').value = '';
  for (const select of Object.values(sides)) if (select) select.value = '';
  choose();
};
one('#sort').onchange = event => {
  const [key, sign] = event.target.value.split(':');
  const value = card => card.dataset[key] === '' ? Infinity : sign * card.dataset[key];
  cards.sort((a, b) => value(a) - value(b) || a.dataset.index - b.dataset.index);
  grid.append(...cards);
};

/* What is drawn on the pictures. */
for (const box of all('input[data-hides]'))
  box.onchange = () => document.body.classList.toggle(box.dataset.hides, !box.checked);
const confidence = one('#confidence');
if (confidence) confidence.oninput = () => {
  one('#least').textContent = Number(confidence.value).toFixed(2);
  for (const object of all('[data-confidence]'))
    object.classList.toggle('unsure', Number(object.dataset.confidence) < confidence.value);
};

/* A picture as large as the window, and larger. */
const zoom = one('#zoom');
const stage = one('#zoom .stage');
let current = null;
let scale = 1;
function size() {
  const [image] = all('img', stage);
  const {naturalWidth: width, naturalHeight: height} = image;
  const fit = Math.min(stage.clientWidth / width, stage.clientHeight / height);
  image.parentElement.style.width = `${Math.floor(width * fit * scale)}px`;
}
function open(picture) {
  current = picture;
  scale = 1;
  const copy = document.createElement('div');
  copy.className = 'picture';
  copy.append(...[...picture.children].map(child => child.cloneNode(true)));
  stage.replaceChildren(copy);
  one('#caption').textContent = all('img', picture)[0].alt;
  if (!zoom.open) zoom.showModal();
  size();
}
for (const picture of all('.card .picture')) picture.onclick = () => open(picture);
for (const button of all('#zoom [data-scale]'))
  button.onclick = () => {  // what is in the middle stays there
    const {clientWidth: width, clientHeight: height} = stage;
    const x = (stage.scrollLeft + width / 2) / stage.scrollWidth;
    const y = (stage.scrollTop + height / 2) / stage.scrollHeight;
    scale = Math.min(16, Math.max(1, scale * button.dataset.scale));
    size();
    stage.scrollTo(x * stage.scrollWidth - width / 2, y * stage.scrollHeight - height / 2);
  };
function step(by) {
  const shown = all('.card:not([hidden]) .picture');
  open(shown[(shown.indexOf(current) + by + shown.length) % shown.length]);
}
for (const button of all('#zoom [data-step]')) button.onclick = () => step(Number(button.dataset.step));
zoom.onkeydown = event => {
  if (event.key === 'ArrowLeft') step(-1);
  if (event.key === 'ArrowRight') step(1);
};
stage.onclick = event => { if (event.target === stage) zoom.close(); };
one('#close').onclick = () => zoom.close();
window.onresize = () => { if (zoom.open) size(); };
