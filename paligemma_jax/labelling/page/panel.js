// What stands beside the picture: classes, objects, words, how a model reads them, settings.

import * as answers from './answers.js';
import {colorOf} from './stage.js';

const one = selector => document.querySelector(selector);

function make(name, values = {}, ...children) {
  const made = Object.assign(document.createElement(name), values);
  made.append(...children);
  return made;
}

const button = (text, onclick, key = '') =>
  make('button', {type: 'button', onclick}, ...key ? [make('kbd', {textContent: key}), ' '] : [], text);

export class Panel {
  constructor(hooks) {
    this.hooks = hooks;
    this.least = 0.3;
    this.pairs = [];
    this.event = null;
    one('#answer').oninput = () => { this.hasOwnText = true; };
    one('#answer').onchange = () => hooks.text(this.text, false); // also of a field that is left
    one('#prefix').oninput = event => hooks.prefix(event.target.value);
  }

  get isTyping() { return ['answer', 'prefix'].includes(document.activeElement?.id); }
  get text() { return one('#answer').value; }
  get prefix() { return one('#prefix').value.trim() || null; }
  get isCounting() { return this.state.answer === 'counts'; }
  get hasEvents() { return this.state.asks && this.state.settings.events.length > 0; }

  setState(state) {
    this.state = state;
    const {settings} = state;
    const isWords = state.answer === 'text';
    one('#classes').hidden = isWords;
    one('#objects').hidden = isWords;
    one('#events').hidden = !this.hasEvents;
    one('#answers').hidden = !state.asks;
    one('#another').hidden = !state.asks;
    one('#questions').replaceChildren(...settings.questions.map(text => new Option(text)));
    one('#answers').replaceChildren(...settings.answers.map((text, number) =>
      button(text, () => this.setText(text, true), number < 9 ? number + 1 : '')));
    one('select[name=format]').replaceChildren(...state.formats.map(name => new Option(name)));
    this.showEvents();
  }

  /* Classes, with their keys, and counts where images are counted without boxes. */
  showClasses(label) {
    const {classes} = this.state.settings;
    const counts = this.isCounting ? answers.readCounts(this.text) : {};
    one('#classes').replaceChildren(...classes.map((name, number) => {
      const chosen = button('', () => this.hooks.label(name), number < 9 ? number + 1 : '');
      const spot = make('i');
      spot.style.background = colorOf(name, classes);
      chosen.append(spot, name);
      chosen.setAttribute('aria-pressed', name === label);
      if (!this.isCounting) return chosen;
      return make('span', {}, chosen, button('−', () => this.count(name, -1)),
        ` ${counts[name] ?? 0} `, button('+', () => this.count(name, 1)));
    }));
    this.label = label;
  }

  count(name, by) {
    const counts = answers.readCounts(this.text);
    counts[name] = Math.max(0, (counts[name] ?? 0) + by);
    this.setText(answers.countsText(counts, this.state.settings.classes), false);
    this.showClasses(this.label);
  }

  showObjects(objects, selected) {
    one('#objects').replaceChildren(...objects.map((object, number) => {
      const chosen = button(`${number + 1}  ${object.label}`, () => this.hooks.pick(number));
      chosen.setAttribute('aria-pressed', number === selected);
      return chosen;
    }));
  }

  showItem(item, isProposed) {
    this.hasOwnText = false;
    this.pairs = [];
    this.event = null;
    const isDrawn = this.state.answer === 'boxes' || this.state.answer === 'masks';
    one('#answer').readOnly = isDrawn && item.objects !== null;
    this.showTexts(item);
    if (isProposed && item.objects === null && item.proposal.text)
      one('#answer').placeholder = item.proposal.text;
    else one('#answer').placeholder = '';
    this.showProposal(isProposed || item.proposal ? item.proposal : null);
    this.showReads(item.reads);
    this.showEvents();
    if (this.isCounting) this.showClasses(this.label);
  }

  showTexts(item) {
    one('#answer').value = item.suffix ?? '';
    one('#prefix').value = item.prefix ?? (this.state.asks
      ? this.state.settings.questions.length ? this.asked(this.state.settings.questions[0]) : ''
      : item.usual_prefix);
    this.hasOwnText = item.objects !== null && this.isCounting && !item.objects.length
      && Boolean(item.suffix);
  }

  /* Returns a question as a prompt. */
  asked(question) {
    const template = this.state.settings.prompt ?? this.state.usual_prompt;
    return template.replace('{question}', question).replace(/\{\{|\}\}/g, brace => brace[0]);
  }

  showProposal(proposal) {
    one('#proposal').hidden = !proposal;
    if (!proposal) return;
    const parts = [];
    if (proposal.doubt !== undefined && proposal.doubt !== null) parts.push(`doubt ${proposal.doubt.toFixed(2)}`);
    if (proposal.disagreement !== undefined && proposal.disagreement !== null)
      parts.push(`disagreement ${proposal.disagreement.toFixed(2)}`);
    if (!proposal.objects?.length) parts.push(proposal.text || 'nothing');
    one('#proposal span').textContent = parts.join(' · ');
  }

  showReads(reads) {
    const line = one('#reads p');
    one('#reads .pieces').replaceChildren();
    line.className = '';
    line.textContent = reads ? '' : 'no answer yet';
    if (!reads) return;
    line.className = reads.fits ? '' : 'bad';
    line.textContent = `${reads.needed} of ${reads.text_len} tokens; `
      + (reads.fits ? 'ends with eos' : 'no room for eos: the model would not learn to stop')
      + ` (${reads.tokenizer})`;
    one('#reads .pieces').append(...reads.pieces.map(([piece, , isLearnt]) =>
      make('span', {textContent: piece, className: isLearnt ? 'learnt' : ''})));
  }

  /* Words by keys. */

  showEvents() {
    if (!this.hasEvents) return;
    const {events, phases} = this.state.settings;
    one('#events').replaceChildren(...events.map((event, number) => {
      const chosen = button(event, () => this.chooseEvent(event), String.fromCharCode(65 + number));
      chosen.setAttribute('aria-pressed', event === this.event);
      const states = phases.map((phase, place) => {
        const state = button(phase, () => this.toggle(event, phase));
        state.title = `${String.fromCharCode(65 + number)} ${place + 1}`;
        state.setAttribute('aria-pressed', this.pairs.some(([name, when]) => name === event && when === phase));
        return state;
      });
      return make('div', {className: 'event'}, chosen, ...states);
    }));
  }

  chooseEvent(event) {
    this.event = event;
    this.showEvents();
  }

  toggle(event, phase) {
    this.event = event;
    this.setEvents(answers.togglePair(this.pairs, event, phase));
  }

  setEvents(pairs) {
    this.pairs = pairs;
    this.setText(answers.eventsText(pairs, this.state.settings.format), false);
    this.showEvents();
  }

  setText(text, isDone) {
    one('#answer').value = text;
    this.hasOwnText = true;
    this.hooks.text(text, isDone);
  }

  backspace() {
    if (!this.pairs.length) return false;
    this.setEvents(this.pairs.slice(0, -1));
    return true;
  }

  /* Returns whether a key was one of words. */
  onKey(event, digit) {
    if (this.isCounting && event.shiftKey && digit > 0 && this.state.settings.classes[digit - 1]) {
      this.count(this.state.settings.classes[digit - 1], 1);
      return true;
    }
    if (this.state.answer !== 'text') return false;
    const {events, phases, answers: usual} = this.state.settings;
    const number = event.key.length === 1 ? event.key.toLowerCase().charCodeAt(0) - 97 : -1;
    if (this.hasEvents && events[number] !== undefined) {
      this.chooseEvent(events[number]);
      return true;
    }
    if (this.hasEvents && this.event && phases[digit - 1] !== undefined) {
      this.toggle(this.event, phases[digit - 1]);
      return true;
    }
    if (this.state.asks && digit > 0 && usual[digit - 1] !== undefined) {
      this.setText(usual[digit - 1], true);
      return true;
    }
    return false;
  }

  focus() { if (!one('#answer').readOnly) one('#answer').focus(); }
  focusPrefix() { one('#prefix').focus(); }
  leave() { if (this.isTyping) document.activeElement.blur(); }

  /* Settings and findings. */

  openSettings({settings, usual_prompt: usual}) {
    for (const name of ['classes', 'questions', 'answers', 'events', 'phases'])
      one(`#settings-form [name=${name}]`).value = settings[name].join('\n');
    one('#settings-form [name=prompt]').value = settings.prompt ?? '';
    one('#settings-form [name=prompt]').placeholder = usual;
    one('#settings-form [name=format]').value = settings.format;
    one('#settings-problem').textContent = '';
    one('#settings-form').showModal();
  }

  readSettings() {
    const value = name => one(`#settings-form [name=${name}]`).value;
    const lines = name => value(name).split('\n').map(text => text.trim()).filter(Boolean);
    const lists = ['classes', 'questions', 'answers', 'events', 'phases'].map(name => [name, lines(name)]);
    return {...Object.fromEntries(lists), prompt: value('prompt').trim() || null, format: value('format')};
  }

  showFindings(findings, openKey, nameOf) {
    const shown = findings.map(one => make('div', {className: `finding ${one.severity}`},
      make('b', {textContent: `${one.severity}: ${one.kind} (${one.count})`}),
      make('div', {textContent: one.what}), make('small', {textContent: one.remedy}),
      ...one.places.map(place => {
        const key = place.replace(/ \((?:needs|asks|has).*\)$/, '');
        return button(nameOf(key), () => openKey(key));
      })));
    one('#findings div').replaceChildren(...shown.length ? shown : [make('p', {textContent: 'Nothing.'})]);
    one('#findings').showModal();
  }
}
