/** Who chooses among the adapters instead of the gates, and what each derives from them. */
package org.meteora.router;
