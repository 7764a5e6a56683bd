/**
 * Renders one chat template in a thread of its own: a template is a program from a model file, and the thread can be
 * stopped. Plain JavaScript, because it is loaded by its path both from the sources and beside the bundle.
 */
import { parentPort, workerData } from 'node:worker_threads'
import { Template } from '@huggingface/jinja'

const { source, constants, maxLength } = workerData

/** @param {() => unknown} work */
function answer(work) {
  try {
    return { text: work() }
  } catch (error) {
    return { error: String(error instanceof Error ? error.message : error).slice(0, 500) }
  }
}

function render(variables) {
  const text = template.render({ ...constants, ...variables })
  if (text.length > maxLength) throw new Error(`the result has ${text.length} characters, more than ${maxLength}`)
  return text
}

const reply = (message) => {
  // oxlint-disable-next-line unicorn/require-post-message-target-origin -- a thread, not a window
  parentPort.postMessage(message)
}

let template
reply(
  answer(() => {
    template = new Template(source)
    return ''
  }),
)
parentPort.on('message', (variables) => reply(answer(() => render(variables))))
