/** Why a server lets nobody in, and the key that it may want. */

import { $, explained, status } from "./shown.js";

/** Browsers do not tell a refused WebSocket from one that nobody answers; the server's probe does. */
export async function refusal(error) {
  const health = await fetch("readyz").then((answer) => answer.json()).catch(() => null);
  const advice = `It may have no room, or not allow pages of ${location.origin}: try again, or read its log.`;
  return health ? new Error(`The server is there (${health.status}), but refused the stream. ${advice}`) : error;
}

/** Browsers cannot send a key with a WebSocket: it is exchanged for a ticket that is good for a minute. */
export async function ticket() {
  const answer = await tickets({ Authorization: `Bearer ${$("key").value}` });
  const { ticket, message } = await answer.json().catch(() => ({})); // a proxy answers with a page
  if (!ticket) throw new Error(message ?? `No deltaspot server answers here (${answer.status}).`);
  return ticket;
}

const tickets = (headers) => fetch("v1/tickets", { method: "POST", headers });
export const wantsKey = async () => (await tickets({}).catch(() => null))?.status === 401;

export function askForKey(error) {
  status($("access").hidden ? "This server wants a key." : explained(error), true);
  $("access").hidden = false;
  $("key").focus();
}
