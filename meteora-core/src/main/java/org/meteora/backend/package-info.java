/** Where it is decided, once for each model, what computes it. */
package org.meteora.backend;
