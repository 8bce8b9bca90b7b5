// Which conversation a request belongs to, so that the views can call both by one name.

/** Requests remembered: as many as the timeline can show. */
const NAMES_MAX = 600;

export class RequestNames {
  private readonly names = new Map<number, string>();

  set(request: number, name: string): void {
    this.names.set(request, name);
    const oldest = this.names.keys().next().value;
    if (this.names.size > NAMES_MAX && oldest !== undefined) this.names.delete(oldest);
  }

  /** `Chat 1`, or nothing for requests of others. */
  of(request: number): string | undefined {
    return this.names.get(request);
  }

  /** A new engine counts its requests from the beginning. */
  clear(): void {
    this.names.clear();
  }
}
