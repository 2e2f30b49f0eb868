/** What a browser keeps of the page from one visit to the next; nothing where that is forbidden. */

const named = (name) => `deltaspot-${name}`; // other pages of this host may keep things, too

/** What was kept, or null. */
export function kept(name) {
  try {
    return JSON.parse(localStorage.getItem(named(name)));
  } catch {
    return null;
  }
}

/** Keep what JSON can hold, if the browser lets us. */
export function keep(name, value) {
  try {
    localStorage.setItem(named(name), JSON.stringify(value));
  } catch {} // for this visit, the page has it
}
