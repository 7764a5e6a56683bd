/** A text side whose tokens are UTF-16 code units: easy to read off, no worker. Code unit 0 ends a turn. */
import type { Detokenizer, OutputText, TextModel } from '../../gateway/text/types.js'

const encode = (text: string): number[] => Array.from({ length: text.length }, (_, i) => text.charCodeAt(i))

/** Stop strings are only found within one token, i.e. of one character. */
function output(stop: readonly string[]): OutputText {
  return {
    push: (id) => {
      const text = String.fromCharCode(id)
      return stop.includes(text) ? { text: '', tokens: 0, stopped: true } : { text, tokens: 1, stopped: false }
    },
    finish: () => ({ text: '', tokens: 0, stopped: false }),
  }
}

/** See above. */
export function fakeText(): TextModel {
  return {
    vocabSize: 65_536,
    eosTokenIds: [0],
    hasChatTemplate: true,
    encode: async (text) => encode(text),
    encodePrompt: async (text) => encode(text),
    renderChat: async (messages) => messages.map(({ role, content }) => `${role}:${content}\n`).join(''),
    encodeChat: async (messages) => encode(messages.map(({ role, content }) => `${role}:${content}\n`).join('')),
    decode: (ids) => String.fromCharCode(...ids),
    tokenText: (id) => String.fromCharCode(id),
    newDetokenizer: (): Detokenizer => ({ push: (id) => String.fromCharCode(id), flush: () => '' }),
    newOutput: ({ stop }) => output(stop),
    close: async () => undefined,
  }
}
