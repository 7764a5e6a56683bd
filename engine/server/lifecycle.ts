import { fstatSync } from 'node:fs'

const PARENT_POLL_MS = 500

/**
 * Calls `gone` once when the process that started this one is gone: its end of our stdin (a pipe) closed, the IPC
 * channel closed, or we were given another parent. Returns what stops the watch.
 */
export function watchParent(gone: () => void): () => void {
  const parent = process.ppid
  let reported = false
  const report = (): void => {
    if (!reported) gone()
    reported = true
  }
  const poll = setInterval(() => {
    if (process.ppid !== parent) report()
  }, PARENT_POLL_MS)
  poll.unref()
  const piped = stdinIsPipe()
  if (piped) process.stdin.once('end', report).once('error', report).once('close', report).resume()
  if (process.channel) process.once('disconnect', report)
  return () => {
    clearInterval(poll)
    if (piped) process.stdin.destroy()
    process.off('disconnect', report)
    reported = true
  }
}

function stdinIsPipe(): boolean {
  try {
    const stat = fstatSync(0)
    return stat.isFIFO() || stat.isSocket()
  } catch {
    return false
  }
}
