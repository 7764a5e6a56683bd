/**
 * Renders one chat template in a process of its own: a template is a program from a model file, and only a process can
 * be stopped whatever it does (running out of memory in a thread ends the whole process). Plain JavaScript, because it
 * is started by its path both from the sources and beside the bundle.
 */
import { Worker } from 'node:worker_threads'
import { Template } from '@huggingface/jinja'

// Ends this process with its parent, also in the middle of an endless render: the pipe closes when the parent dies.
const WATCH = `
  try { while (require('node:fs').readSync(0, Buffer.alloc(16)) > 0); } catch {}
  process.kill(process.pid, 'SIGKILL')`
const watcher = new Worker(WATCH, {
  eval: true,
  resourceLimits: { maxOldGenerationSizeMb: 8, maxYoungGenerationSizeMb: 2 },
})
watcher.unref()

/** @param {() => string} work */
function answer(work) {
  try {
    return { text: work() }
  } catch (error) {
    return { error: String(error instanceof Error ? error.message : error).slice(0, 500) }
  }
}

/** Set by the first message. */
let template
let constants
let maxLength

function prepare(settings) {
  template = new Template(settings.source)
  constants = settings.constants
  maxLength = settings.maxLength
  return ''
}

function render(variables) {
  const text = template.render({ ...constants, ...variables })
  if (text.length > maxLength) throw new Error(`the result has ${text.length} characters, more than ${maxLength}`)
  return text
}

process.on('disconnect', () => process.exit())
process.on('message', (message) => process.send(answer(() => (template ? render(message) : prepare(message)))))
