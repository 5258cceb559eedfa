// Many images at once: thumbnails, a choice of them, and one answer for all that are chosen.

import {DONE, KEY, NAME, REVISION, STATUS, TEXT} from './answers.js';
import {smallAddress} from './remote.js';

const PER_PAGE = 120;
const one = selector => document.querySelector(selector);

export class Many {
  constructor(hooks) {
    this.hooks = hooks;
    this.chosen = new Set();
    this.start = 0;
    this.last = -1;
    one('#all').onclick = () => this.chooseAll();
    one('#none').onclick = () => { this.chosen.clear(); this.draw(); };
    one('#page-back').onclick = () => this.turn(-1);
    one('#page-on').onclick = () => this.turn(1);
    one('#apply').onclick = () => this.give({text: one('#many-answer').value, prefix: one('#many-prefix').value.trim() || null});
    one('#many-nothing').onclick = () => this.give({objects: []});
    one('#many-answer').onkeydown = event => { if (event.key === 'Enter') one('#apply').click(); };
  }

  show(state) {
    const isWords = state.answer === 'text' || state.answer === 'counts';
    one('#many-texts').hidden = !isWords;
    one('#many-nothing').hidden = state.answer === 'text';
    this.state = state;
    if (state.asks && !one('#many-prefix').value && state.settings.questions.length)
      one('#many-prefix').value = (state.settings.prompt ?? state.usual_prompt).replace('{question}', state.settings.questions[0]);
    this.chosen = new Set([...this.chosen].filter(key => this.hooks.shown().some(item => item[KEY] === key)));
    this.draw();
  }

  turn(by) {
    const {length} = this.hooks.shown();
    this.start = Math.min(Math.max(this.start + by * PER_PAGE, 0), Math.floor(Math.max(length - 1, 0) / PER_PAGE) * PER_PAGE);
    this.draw();
    one('#tiles').scrollTop = 0;
  }

  chooseAll() {
    this.chosen = new Set(this.hooks.shown().map(item => item[KEY]));
    this.draw();
  }

  draw() {
    const items = this.hooks.shown();
    this.start = Math.min(this.start, Math.floor(Math.max(items.length - 1, 0) / PER_PAGE) * PER_PAGE);
    const here = items.slice(this.start, this.start + PER_PAGE);
    one('#tiles').replaceChildren(...here.map((item, number) => this.tile(item, this.start + number)));
    one('#chosen').textContent = `${this.chosen.size.toLocaleString('en')} chosen`;
    one('#page').textContent = `${this.start + 1} to ${this.start + here.length} of ${items.length.toLocaleString('en')}`;
  }

  tile(item, place) {
    const tile = document.createElement('button');
    tile.type = 'button';
    tile.className = item[STATUS] === DONE ? 'done' : '';
    tile.dataset.key = item[KEY];
    tile.setAttribute('aria-pressed', this.chosen.has(item[KEY]));
    const image = new Image();
    Object.assign(image, {loading: 'lazy', src: smallAddress(item[KEY]), alt: ''});
    const [name, text] = [document.createElement('span'), document.createElement('span')];
    name.textContent = item[NAME];
    text.textContent = item[TEXT] || ' ';
    tile.append(image, name, text);
    tile.onclick = event => this.choose(place, event.shiftKey);
    tile.ondblclick = () => this.hooks.open(item[KEY]);
    return tile;
  }

  choose(place, isRange) {
    const items = this.hooks.shown();
    const {[KEY]: key} = items[place];
    if (isRange && this.last >= 0)
      for (let other = Math.min(this.last, place); other <= Math.max(this.last, place); other++)
        this.chosen.add(items[other][KEY]);
    else if (!this.chosen.delete(key)) this.chosen.add(key);
    this.last = place;
    this.draw();
  }

  async give(answer) {
    const items = this.hooks.shown().filter(item => this.chosen.has(item[KEY]))
      .map(item => ({key: item[KEY], revision: item[REVISION]}));
    if (!items.length) return;
    try {
      const changed = await this.hooks.post('batch', {by: this.hooks.by(), items, ...answer});
      this.hooks.take(changed.items);
      this.hooks.steps(changed.steps);
      this.chosen.clear();
      this.hooks.problem('');
      this.draw();
    } catch (failure) {
      this.hooks.take(failure.items?.map(item => item.summary) ?? []);
      one('#chosen').textContent = failure.message;
      this.hooks.problem(failure.message);
    }
  }

  onKey(event, leave, undo) {
    if (event.target.matches?.('input')) {
      if (event.key === 'Escape') event.target.blur();
      return;
    }
    const key = event.key.toLowerCase();
    if ((event.ctrlKey || event.metaKey) && key === 'a') {
      event.preventDefault();
      this.chooseAll();
    } else if ((event.ctrlKey || event.metaKey) && key === 'z') undo().then(() => this.draw());
    else if (key === 'g' || key === 'escape') leave();
    else if (key === 'pagedown') this.turn(1);
    else if (key === 'pageup') this.turn(-1);
    else {
      const digit = /^Digit([1-9])$/.exec(event.code)?.[1];
      const answer = this.state.asks && digit && this.state.settings.answers[digit - 1];
      if (answer) this.give({text: answer, prefix: one('#many-prefix').value.trim() || null});
    }
  }
}
